"""Sums of products of rows with themselves, Σ d_i d_iᵀ: of all rows, and class by class.

The products are symmetric. Only their upper triangle is kept up to date, in strips of rows, which saves up to half of
the arithmetic; `mirror` fills in the rest.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nc_callbacks.statistics.precision import wide_dtype

_STRIPS = 8
_LEAST_STRIP = 128
"""Rows of a strip of the products: narrower ones are slower than the whole product (measured on a CPU).

Twice as many with several threads, which wait for one another after each strip.
"""

_FEW_FEATURES = 16
_ROWS_TOGETHER = 256
"""Rows whose products are summed by themselves where there are so few features.

There the products of BLAS add one row after another to a single number; with more features it works in blocks as well.
"""

_BLOCK_ROWS = 64
"""Rows of one class that are multiplied together where the host does not know the classes' counts."""

_BLOCK_BYTES = 64 * 2**20
"""Bound on the temporary memory of those products."""


def mirror(products: Float[Tensor, "*k p p"]) -> Float[Tensor, "*k p p"]:
    """Set the lower triangles to the upper ones, and give the matrices back."""
    return products.triu_().add_(products.triu(1).mT)


def add_products(products: Float[Tensor, "p p"], d: Float[Tensor, "n p"]) -> None:
    """Add dᵀd to the upper triangle of `products`."""
    p = d.shape[1]
    if p < _FEW_FEATURES and d.shape[0] > _ROWS_TOGETHER:
        whole = d.shape[0] // _ROWS_TOGETHER * _ROWS_TOGETHER
        blocks = d[:whole].view(-1, _ROWS_TOGETHER, p)
        products.add_(torch.bmm(blocks.mT, blocks).sum(0, dtype=wide_dtype(d.device)))
        if whole < d.shape[0]:
            # By themselves: added one by one to the sum of all rows they would be rounded to its last digit.
            products.add_(d[whole:].T @ d[whole:])
        return
    # Elsewhere than on a CPU one launch is worth more than the arithmetic.
    least = _LEAST_STRIP if torch.get_num_threads() == 1 else 2 * _LEAST_STRIP
    step = max(least, p // _STRIPS) if d.device.type == "cpu" else p
    if step >= p:
        products.addmm_(d.T, d)
        return
    for start in range(0, p, step):
        stop = start + step
        products[start:stop, start:].addmm_(d[:, start:stop].T, d[:, start:])


def add_class_products(products: Float[Tensor, "k p p"], d: Float[Tensor, "n p"], y: Int[Tensor, " n"]) -> None:
    """Add Σ d_i d_iᵀ of the rows of each class to the upper triangle of its matrix."""
    if d.device.type == "cpu":
        _add_by_class(products, d, y)
    else:
        _add_by_blocks(products, d, y)


def _add_by_class(products: Float[Tensor, "k p p"], d: Float[Tensor, "n p"], y: Int[Tensor, " n"]) -> None:
    """A product for each class that occurs, of its rows alone."""
    order = y.argsort()
    classes, counts = y[order].unique_consecutive(return_counts=True)
    parts = d[order].split(counts.tolist())
    for c, part in zip(classes.tolist(), parts, strict=True):
        add_products(products[c], part)


def _add_by_blocks(products: Float[Tensor, "k p p"], d: Float[Tensor, "n p"], y: Int[Tensor, " n"]) -> None:
    """Rows sorted by class and cut into blocks that hold one class each.

    The number of blocks is bounded by shapes alone, so the host never waits for the counts.
    """
    (n, p), k = d.shape, len(products)
    counts = y.new_zeros(k).index_add_(0, y, torch.ones_like(y))
    blocks = (counts + _BLOCK_ROWS - 1) // _BLOCK_ROWS
    ends = blocks.cumsum(0)
    order = y.argsort(stable=True)
    classes = y[order]
    rank = torch.arange(n, device=y.device) - (counts.cumsum(0) - counts)[classes]
    rows = (ends - blocks)[classes] * _BLOCK_ROWS + rank
    total = n // _BLOCK_ROWS + min(k, n) + 1
    padded = d.new_zeros(total * _BLOCK_ROWS, p).index_copy_(0, rows, d[order]).view(total, _BLOCK_ROWS, p)
    owner = torch.searchsorted(ends, torch.arange(total, device=y.device), right=True).clamp(max=k - 1)
    step = max(1, _BLOCK_BYTES // (p * p * d.element_size()))
    for part, owners in zip(padded.split(step), owner.split(step), strict=True):
        products.index_add_(0, owners, torch.bmm(part.mT, part))
