"""Common parts of the metrics: one dtype, checks, and loops over blocks of rows instead of k × k matrices."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import reduce
from typing import ParamSpec, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nc_callbacks.statistics.precision import wide_dtype
from nc_callbacks.statistics.products import add_products

P = ParamSpec("P")
T = TypeVar("T")

BLOCK_BYTES = 4 * 2**20
"""Bound on the memory of one block of a matrix with one row per class: a few of them stay in a CPU's cache."""


MANY = 1024
"""Classes beyond which products are in float32, where no simplex ETF is near: they have too many dimensions to fit."""

_ROWS_TOGETHER = 1024
"""Rows whose products are summed in float32: equal numbers, which round alike, lose 1e-6 at the worst."""


def full_precision(function: Callable[P, T]) -> Callable[P, T]:
    """The function without autocast, which would round its products to half precision."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        given = (*args, *kwargs.values())
        tensors = [getattr(value, "means", value) for value in given]
        with ExitStack() as stack:
            for kind in {tensor.device.type for tensor in tensors if isinstance(tensor, Tensor)}:
                if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            return function(*args, **kwargs)

    return wrapped


def common_dtype(*tensors: Tensor | None) -> torch.dtype:
    """The widest dtype among the tensors, float32 at the least."""
    return reduce(torch.promote_types, (t.dtype for t in tensors if t is not None), torch.float32)


def as_matrix(name: str, tensor: Float[Tensor, "k p"], dtype: torch.dtype | None = None) -> Float[Tensor, "k p"]:
    """`tensor` in `dtype`, checked to hold one row per class for at least two classes."""
    if tensor.ndim != 2 or tensor.shape[0] < 2:
        raise ValueError(
            f"{name} must be a matrix with a row for each of at least 2 classes, got shape {tuple(tensor.shape)}."
        )
    return tensor.to(dtype or common_dtype(tensor))


def same_shape(weight: Tensor, means: Tensor) -> tuple[Tensor, Tensor, torch.dtype]:
    """Both matrices, checked to have one shape, and the dtype of what is made of both."""
    weight, means = as_matrix("weight", weight), as_matrix("means", means)
    if weight.shape != means.shape:
        raise ValueError(
            f"weight and means must have the same shape (k, p), got {tuple(weight.shape)} and {tuple(means.shape)}. "
            "A classifier with a convolutional weight is flattened by weight.flatten(1)."
        )
    return weight, means, common_dtype(weight, means)


def class_labels(targets: Tensor, k: int) -> Int[Tensor, " *n"]:
    """Targets as int64, checked to be class indices in 0…k−1 (of any integer type, bool, or integral floats)."""
    if targets.is_complex():
        raise ValueError(f"targets must be class indices, got {targets.dtype}.")
    labels = targets.long()
    if targets.is_floating_point() and not torch.equal(labels.to(targets.dtype), targets):
        raise ValueError("targets must be class indices, got floating point numbers that are no integers.")
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < k:
        raise ValueError(f"targets must lie in 0…{k - 1}, got {int(labels.min())}…{int(labels.max())}.")
    return labels


def row_blocks(rows: int, columns: int, dtype: torch.dtype) -> Iterator[slice]:
    """Slices of rows whose blocks of a rows × columns matrix stay within `BLOCK_BYTES`."""
    step = max(1, BLOCK_BYTES // (columns * dtype.itemsize))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def row_parts(*matrices: Float[Tensor, "k p"]) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of several matrices in float64, block by block."""
    dtype = torch.promote_types(common_dtype(*matrices), wide_dtype(matrices[0].device))
    rows, columns = matrices[0].shape
    blocks = row_blocks(rows, columns, dtype)
    return (tuple(matrix[block].to(dtype) for matrix in matrices) for block in blocks)


def product(matrix: Float[Tensor, "p q"], columns: Float[Tensor, "q r"]) -> Float[Tensor, "p r"]:
    """The product in the columns' precision, without a copy of a large matrix in it."""
    if matrix.dtype == columns.dtype or (torch.is_grad_enabled() and (matrix.requires_grad or columns.requires_grad)):
        return matrix.to(columns.dtype) @ columns
    found = columns.new_empty(len(matrix), columns.shape[1])
    # One buffer: blocks that come and go leave holes in memory that add up to the copy.
    buffer = columns.new_empty(0)
    p, q = matrix.shape
    for rows in row_blocks(p, q, columns.dtype):
        part = matrix[rows]
        buffer.resize_(part.shape).copy_(part)
        found[rows] = buffer @ columns
    return found


def unit_parts(*matrices: Float[Tensor, "k p"]) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of several matrices, each matrix divided by its `magnitude`."""
    scales = [magnitude(matrix) for matrix in matrices]
    return (tuple(m / s for m, s in zip(rows, scales, strict=True)) for rows in row_parts(*matrices))


def directions(rows: Float[Tensor, "n p"]) -> Float[Tensor, "n p"]:
    """Rows of length 1, whatever their sizes; NaN for a row of zeros."""
    rows = rows / rows.detach().abs().amax(1, keepdim=True)
    return rows / rows.norm(dim=1, keepdim=True)


def magnitude(tensor: Tensor) -> Float[Tensor, ""]:
    """The power of two just below the largest entry: numbers divided by it can be squared without loss; 1 for zeros."""
    dtype = torch.promote_types(common_dtype(tensor), wide_dtype(tensor.device))
    largest = torch.stack(tensor.detach().aminmax()).abs().amax().to(dtype)
    scale = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - 1)
    return torch.where(largest.isfinite() & (largest > 0), scale, 1)


def scaled(tensor: Float[Tensor, "k p"], widen: bool = True) -> tuple[Float[Tensor, "k p"], float]:
    """The matrix, in float64 or as it is, and a number that it was divided by: 1 where squares are in no danger."""
    scale = float(magnitude(tensor))
    if widen:
        tensor = tensor.to(torch.promote_types(common_dtype(tensor), wide_dtype(tensor.device)))
    safe = torch.finfo(tensor.dtype).tiny ** 0.25
    return (tensor, 1.0) if safe < scale < 1 / safe else (tensor / scale, scale)


def check_normal(name: str, variances: Tensor) -> None:
    """Refuse variances that have lost their digits, for all of them are below the normal numbers of their type."""
    largest = torch.stack(variances.detach().aminmax()).abs().amax() if variances.numel() else variances.new_zeros(())
    if 0 < largest < torch.finfo(variances.dtype).tiny:
        raise ValueError(
            f"{name} must be normal numbers of {variances.dtype}, got at most {float(largest):.2g}, of which digits "
            "are lost. Gather the moments in float64, or scale the features."
        )


def is_finite(tensor: Tensor) -> Tensor:
    """Whether all entries are, without a copy of them."""
    return torch.stack(tensor.aminmax()).isfinite().all() if tensor.numel() else tensor.new_ones((), dtype=torch.bool)


def etf_distance(a: Float[Tensor, "k p"], b: Float[Tensor, "k p"]) -> Float[Tensor, ""]:
    """‖ A Bᵀ/‖A Bᵀ‖_F − E ‖_F with E = (I_k − 11ᵀ/k)/√(k−1)."""
    k, p = a.shape
    # The rank of A Bᵀ keeps the distance above √(2 − √2) where 2p ≤ k − 1: no digits are lost in 2 − 2 cos(A Bᵀ, E).
    distance = _etf_distance_by_features(a, b) if 2 * p < k else _etf_distance_by_classes(a, b)
    return distance.to(common_dtype(a, b))


def _etf_distance_by_features(a: Tensor, b: Tensor) -> Tensor:
    """From p × p matrices alone: ‖A Bᵀ‖² = tr(AᵀA BᵀB), and E has norm 1."""
    k = len(a)
    # Added up one by one: all blocks' p × p matrices together would be larger than A.
    if a is b:
        terms: Iterator[tuple[Tensor, ...]] = ((_gram(x, k), x.sum(0)) for (x,) in unit_parts(a))
        a_gram, a_sum = reduce(_added, terms)
        b_gram, b_sum, trace = a_gram, a_sum, a_gram.trace()
    else:
        terms = ((_gram(x, k), _gram(y, k), x.sum(0), y.sum(0), (x * y).sum()) for x, y in unit_parts(a, b))
        a_gram, b_gram, a_sum, b_sum, trace = reduce(_added, terms)
    norm = _inner(a_gram, b_gram).clamp(min=0).sqrt()
    product = (trace - a_sum @ b_sum / k) / (k - 1) ** 0.5
    return (2 - 2 * product / norm).clamp(min=0).sqrt()


def _gram(rows: Float[Tensor, "n p"], k: int) -> Float[Tensor, "p p"]:
    """Their products with themselves, right on and above the diagonal.

    In float32 where there are many classes: they enter by their norm alone, in which the roundings of p² entries
    average out.
    """
    if rows.requires_grad:
        return rows.T @ rows
    total = rows.new_zeros(rows.shape[1], rows.shape[1])
    if k <= MANY:
        add_products(total, rows)
        return total
    for part in rows.float().split(_ROWS_TOGETHER):
        products = torch.zeros_like(total, dtype=part.dtype)
        add_products(products, part)
        total += products
    return total


def _inner(a: Float[Tensor, "p p"], b: Float[Tensor, "p p"]) -> Float[Tensor, ""]:
    """Σ_ij a_ij b_ij of symmetric matrices, from their upper triangles."""
    return 2 * (a.triu() * b.triu()).sum() - a.diagonal() @ b.diagonal()


def _added(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x + y for x, y in zip(a, b, strict=True))


def _etf_distance_by_classes(a: Tensor, b: Tensor) -> Tensor:
    """Entry by entry: the k × k matrix is at most four times as large as a p × p one."""
    k, scales = len(a), (magnitude(a), magnitude(b))
    dtype = torch.promote_types(common_dtype(a, b), scales[0].dtype)
    product = (a.to(dtype) / scales[0]) @ (b.to(dtype) / scales[1]).T
    etf = (torch.eye(k, dtype=dtype, device=a.device) - 1 / k) / (k - 1) ** 0.5
    return (product / product.norm() - etf).norm()
