"""Sums of deviations d from the class shifts, as they stand and as they would be taken around other shifts.

With the gap g = old − new shift of each class, Σ (d + g) = S + n g and Σ (d + g)(d + g)ᵀ = Q + g hᵀ + h gᵀ, where
h = S + n g / 2. The algebra is done in float64, in strips of Q, so that it needs little memory beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from nc_callbacks.statistics import two_parts

_STRIPS = 8
_LEAST_STRIP = 128
_CLASSES = 4096
"""Classes whose gaps are worked on at once."""

_BYTES = 2 * 2**20
"""Bound on the class products that are worked on at once, where more than one matrix fits."""

Place = Any
"""Of part of the products: rows and columns, or classes."""


def total(state: Mapping[str, Tensor], name: str, place: Place) -> Tensor:
    """Sums or products at a place, both parts together in the wide precision."""
    return two_parts.total(state[name], state[f"earlier_{name}"], place, state["squares"].dtype)


def moved_rows(state: Mapping[str, Tensor], classes: Int[Tensor, " m"], gap: Float[Tensor, "m p"]) -> dict[str, Tensor]:
    """Sums, squares and coordinate squares of some classes around shifts that lie `gap` before theirs."""
    sums, n = total(state, "sums", classes), state["counts"][classes]
    coordinates, gaps = sums.sum(1), gap.sum(1)
    squares, coordinate_squares = state["squares"][classes], state["coordinate_squares"][classes]
    return {
        "squares": squares + 2 * (gap * sums).sum(1) + n * gap.square().sum(1),
        "coordinate_squares": coordinate_squares + 2 * gaps * coordinates + n * gaps.square(),
        "sums": sums.addcmul_(n[:, None].to(gap.dtype), gap),
    }


def moved_products(
    state: Mapping[str, Tensor], classes: Int[Tensor, " m"], gap: Float[Tensor, "m p"]
) -> Iterator[tuple[Place, Tensor]]:
    """The products around such shifts, part by part: upper triangles of all rows, or matrices of these classes."""
    products = state["products"]
    if products.ndim == 3:
        for some, g in _together(products, classes, gap):
            h = _half_way(state, some, g)
            matrices = total(state, "products", some)
            yield some, matrices.baddbmm_(g[:, :, None], h[:, None]).baddbmm_(h[:, :, None], g[:, None])
    elif products.ndim == 2:
        for rows, columns in strips(len(products)):
            value = total(state, "products", (rows, columns))
            for part, part_gap in zip(classes.split(_CLASSES), gap.split(_CLASSES), strict=True):
                g, h = part_gap, _half_way(state, part, part_gap)
                value.addmm_(g[:, rows].T, h[:, columns]).addmm_(h[:, rows].T, g[:, columns])
            yield (rows, columns), value


def products_around_means(state: Mapping[str, Tensor], gap: Float[Tensor, "k p"]) -> Iterator[tuple[Place, Tensor]]:
    """The products of all rows around the class means, which lie `gap` = −S/n before the shifts: Q + g Sᵀ, for h = S/2.

    One product instead of two, for it is symmetric; upper triangles, strip by strip.
    """
    for rows, columns in strips(len(state["products"])):
        value = total(state, "products", (rows, columns))
        for start in range(0, len(gap), _CLASSES):
            some = slice(start, start + _CLASSES)
            value.addmm_(gap[some, rows].T, total(state, "sums", (some, columns)))
        yield (rows, columns), value


def more_products(
    state: Mapping[str, Tensor], d: Float[Tensor, "n p"], y: Int[Tensor, " n"]
) -> Iterator[tuple[Place, Tensor]]:
    """The products with those of further deviations, given in the wide precision, part by part."""
    products = state["products"]
    if products.ndim == 3:
        for c in y.unique():
            own = d[y == c]
            yield c[None], total(state, "products", c[None]).baddbmm_(own.T[None], own[None])
    elif products.ndim == 2:
        for rows, columns in strips(len(products)):
            yield (rows, columns), total(state, "products", (rows, columns)).addmm_(d[:, rows].T, d[:, columns])


def strips(p: int) -> Iterator[tuple[slice, slice]]:
    """Rows of a p × p matrix and their columns from the diagonal on."""
    step = max(_LEAST_STRIP, -(-p // _STRIPS))
    for start in range(0, p, step):
        yield slice(start, min(start + step, p)), slice(start, p)


def _together(products: Tensor, classes: Tensor, gap: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    step = max(1, _BYTES // (8 * max(1, products[0].numel())))
    return zip(classes.split(step), gap.split(step), strict=True)


def _half_way(state: Mapping[str, Tensor], classes: Tensor, gap: Tensor) -> Tensor:
    return total(state, "sums", classes).addcmul_(state["counts"][classes][:, None].to(gap.dtype), gap, value=0.5)
