"""What the metrics share: one dtype, centring, and loops over blocks of rows instead of k × k matrices."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

BLOCK_BYTES = 4 * 2**20
"""Bound on the memory of one block of a matrix with a row a class: a few of them stay in a CPU's cache."""


def common_dtype(*tensors: Tensor | None) -> torch.dtype:
    """The widest dtype among the tensors, float32 at the least."""
    return reduce(torch.promote_types, (t.dtype for t in tensors if t is not None), torch.float32)


def as_matrix(name: str, tensor: Float[Tensor, "k p"], dtype: torch.dtype | None = None) -> Float[Tensor, "k p"]:
    """`tensor` in `dtype`, checked to hold one row a class for at least two classes."""
    if tensor.ndim != 2 or tensor.shape[0] < 2:
        raise ValueError(
            f"{name} must be a matrix with a row for each of at least 2 classes, got shape {tuple(tensor.shape)}."
        )
    return tensor.to(dtype or common_dtype(tensor))


def centred(means: Float[Tensor, "k p"], global_mean: Float[Tensor, " p"] | None = None) -> Float[Tensor, "k p"]:
    """M = means − m, with m the mean of the rows or `global_mean`."""
    if global_mean is not None:
        return means - global_mean.to(means.dtype)
    once = means - means.mean(0)
    # Where all means share a large offset the first mean is rounded; what it left over is taken out here.
    once -= once.mean(0)
    return once


def same_shape(weight: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
    """Both matrices, the means in the dtype of both, checked to have one shape."""
    weight, means = as_matrix("weight", weight), as_matrix("means", means, common_dtype(weight, means))
    if weight.shape != means.shape:
        raise ValueError(
            f"weight and means must have the same shape (k, p), got {tuple(weight.shape)} and {tuple(means.shape)}. "
            "A classifier with a convolutional weight is flattened by weight.flatten(1)."
        )
    return weight, means


def row_blocks(rows: int, columns: int, dtype: torch.dtype) -> Iterator[slice]:
    """Slices of rows whose blocks of a rows × columns matrix stay within `BLOCK_BYTES`."""
    step = max(1, BLOCK_BYTES // (columns * dtype.itemsize))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def row_parts(*matrices: Float[Tensor, "k p"]) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of several matrices in their common dtype, block by block."""
    dtype = common_dtype(*matrices)
    rows, columns = matrices[0].shape
    blocks = row_blocks(rows, columns, dtype)
    return (tuple(matrix[block].to(dtype) for matrix in matrices) for block in blocks)


def is_finite(tensor: Tensor) -> Tensor:
    """Whether all entries are, without a copy of them."""
    return torch.stack(tensor.aminmax()).isfinite().all() if tensor.numel() else tensor.new_ones((), dtype=torch.bool)


def etf_distance(a: Float[Tensor, "k p"], b: Float[Tensor, "k p"]) -> Float[Tensor, ""]:
    """‖ A Bᵀ/‖A Bᵀ‖_F − E ‖_F with E = (I_k − 11ᵀ/k)/√(k−1)."""
    k, p = a.shape
    # The rank of A Bᵀ keeps the distance above √(2 − √2) where 2p ≤ k − 1: no digits are lost in 2 − 2 cos(A Bᵀ, E).
    return _etf_distance_by_features(a, b) if 2 * p < k else _etf_distance_by_classes(a, b)


def _etf_distance_by_features(a: Tensor, b: Tensor) -> Tensor:
    """From p × p matrices alone: ‖A Bᵀ‖² = tr(AᵀA BᵀB), and E has norm 1."""
    k = len(a)
    terms: Iterator[tuple[Tensor, ...]] = (
        (x.T @ x, y.T @ y, x.sum(0), y.sum(0), (x * y).sum()) for x, y in row_parts(a, b)
    )
    # Added up one by one: all blocks' p × p matrices together would be larger than A.
    a_gram, b_gram, a_sum, b_sum, trace = reduce(_added, terms)
    norm = (a_gram * b_gram).sum().clamp(min=0).sqrt()
    product = (trace - a_sum @ b_sum / k) / (k - 1) ** 0.5
    return (2 - 2 * product / norm).clamp(min=0).sqrt()


def _added(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x + y for x, y in zip(a, b, strict=True))


def _etf_distance_by_classes(a: Tensor, b: Tensor) -> Tensor:
    """Entry by entry: the k × k matrix is at most four times as large as a p × p one."""
    k, dtype = len(a), common_dtype(a, b)
    product = a.to(dtype) @ b.to(dtype).T
    etf = (torch.eye(k, dtype=dtype, device=a.device) - 1 / k) / (k - 1) ** 0.5
    return (product / product.norm() - etf).norm()
