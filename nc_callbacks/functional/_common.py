"""What the metrics share: one dtype, centring, and loops over blocks of rows instead of k × k matrices."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

BLOCK_BYTES = 64 * 2**20
"""Bound on the memory of one block of a k × k matrix."""


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
    return once - once.mean(0)


def same_shape(weight: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
    """Both matrices in one dtype, checked to have one shape."""
    dtype = common_dtype(weight, means)
    weight, means = as_matrix("weight", weight, dtype), as_matrix("means", means, dtype)
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


def etf_distance(a: Float[Tensor, "k p"], b: Float[Tensor, "k p"]) -> Float[Tensor, ""]:
    """‖ A Bᵀ/‖A Bᵀ‖_F − E ‖_F with E = (I_k − 11ᵀ/k)/√(k−1), in blocks of rows."""
    k, p = a.shape
    blocks = list(row_blocks(k, k, a.dtype))
    if len(blocks) > 1 and p < k:
        norm = ((a.T @ a) * (b.T @ b)).sum().clamp(min=0).sqrt()
    else:
        norm = torch.stack([(a[rows] @ b.T).square().sum() for rows in blocks]).sum().sqrt()
    scale = 1 / (k - 1) ** 0.5
    parts = []
    for rows in blocks:
        distance = a[rows] @ b.T / norm + scale / k
        diagonal = torch.arange(rows.start, rows.stop, device=a.device)[:, None]
        target = torch.zeros_like(distance).scatter(1, diagonal, scale)
        parts.append((distance - target).square().sum())
    return torch.stack(parts).sum().sqrt()
