"""Class moments from class sums, and the memory that they take."""

from __future__ import annotations

import torch
from torch import Tensor

from nc_callbacks.statistics.moments import ClassMoments
from nc_callbacks.statistics.pending import most_bytes
from nc_callbacks.statistics.products import mirror
from nc_callbacks.statistics.states import Covariance
from nc_callbacks.statistics.sums import moved_products, products_around_means, total

_WIDE_BYTES = 32 * 2**20
"""Size of covariances up to which they are given in float64, whatever the features' precision."""


def moments_of(state: dict[str, Tensor]) -> ClassMoments:
    """The moments whose sums these are."""
    counts = state["counts"]
    n, present = counts.to(state["squares"].dtype), counts > 0
    divisor = torch.where(present, n, torch.nan)
    # Where there are many classes every further (k, p) matrix counts: this one becomes the means.
    delta = total(state, "sums", slice(None))
    delta /= n.clamp(min=1)[:, None]
    traces = (state["squares"] / divisor - torch.linalg.vector_norm(delta, dim=1).square()).clamp(min=0)
    coordinate_sums = (state["coordinate_squares"] / divisor - delta.sum(1).square()).clamp(min=0)
    within = covariances = None
    if state["products"].ndim == 2:
        within = _pooled(state, delta.neg_())
    elif state["products"].ndim == 3:
        within, covariances = _by_class(state, delta.neg_(), divisor)
    else:
        delta.neg_()
    means = torch.sub(state["shift"], delta, out=delta).masked_fill_(~present[:, None], torch.nan)
    return ClassMoments(
        counts=counts.clone(),
        means=means,
        traces=traces,
        coordinate_sums=coordinate_sums,
        within=within,
        covariances=covariances,
        nonfinite=int(state["nonfinite"]),
        precision=float(state["precision"]),
    )


def _pooled(state: dict[str, Tensor], gap: Tensor) -> Tensor:
    """Σ_W: the products around the means, which lie `gap` before the shifts."""
    n, products = state["counts"].sum(), state["products"]
    within = products.new_empty(products.shape, dtype=_given_dtype(state, products.numel()))
    for (rows, columns), value in products_around_means(state, gap):
        value /= n
        mirror(value[:, : rows.stop - rows.start])
        within[rows, columns] = value
        within[columns, rows] = value.T
    return within


def _by_class(state: dict[str, Tensor], gap: Tensor, divisor: Tensor) -> tuple[Tensor, Tensor]:
    """Σ_W and every C_c."""
    products = state["products"]
    within = gap.new_zeros(products.shape[1:])
    covariances = products.new_empty(products.shape, dtype=_given_dtype(state, products.numel()))
    for classes, value in moved_products(state, _all(gap), gap):
        within += mirror(value).sum(0)
        covariances[classes] = value.div_(divisor[classes][:, None, None]).to(covariances.dtype)
    within /= state["counts"].sum()
    return within.to(_given_dtype(state, within.numel())), covariances


def _all(gap: Tensor) -> Tensor:
    return torch.arange(len(gap), device=gap.device)


def _given_dtype(state: dict[str, Tensor], numbers: int) -> torch.dtype:
    wide = state["squares"].dtype
    if 8 * numbers <= _WIDE_BYTES or float(state["precision"]) <= torch.finfo(torch.float64).eps:
        return wide
    return torch.float32


def state_bytes(
    num_classes: int,
    num_features: int,
    covariance: Covariance,
    ranks: int = 1,
    kept: int = 0,
    device: torch.device | None = None,
) -> int:
    """Bytes that class statistics of float32 features take at their peak: states, rows that wait, and `compute`.

    An upper estimate: the second parts of the sums are there after many samples only (see `two_parts`).

    Args:
        num_classes: Number of classes k.
        num_features: Number of features p.
        covariance: Covariances that are gathered.
        ranks: Processes that share the samples; several exchange a copy of the sums.
        kept: Moments of other splits that stay meanwhile.
        device: Where they lie; by default on the CPU.

    Example:
        >>> state_bytes(1000, 2048, "per_class") / 2**30 < 52
        True
    """
    k, p = num_classes, num_features
    matrices = {"none": 0, "pooled": 1, "per_class": k}[covariance]
    products = matrices * p * p
    # Shifts, both parts of the sums and the means; both parts of the products and what is given of them.
    states = (3 * 4 + 2 * 8) * k * p + (2 * 4 + (8 if 8 * products <= _WIDE_BYTES else 4)) * products
    # Beside them, in float64, a strip of one matrix or a few small ones, and the gaps of some classes.
    matrix = p * p if covariance == "per_class" else min(p * p, (p // 8 + 128) * p) * matrices
    algebra = 8 * (4 * matrix + 3 * min(k, 4096) * p)
    waiting = 3 * max(
        most_bytes(device or torch.device("cpu")), 4 * p * k * min(64, p) if covariance == "per_class" else 0
    )
    exchange = 4 * (products + 3 * k * p) if ranks > 1 else 0
    given = (8 if 8 * products <= _WIDE_BYTES else 4) * products + 8 * k * p
    return states + algebra + waiting + exchange + kept * given
