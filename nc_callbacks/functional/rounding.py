"""Bounds of rounding: a direction along which no more than that is found does not exist.

Three kinds of rounding move what is measured along a direction v of feature space. With ε the precision of the
features, r_j the root mean square of feature j, and ε' = min(ε, 2⁻²³) the precision of sums and of the arithmetic
inside a layer, which is float32 at the coarsest:

- Each entry is rounded for itself: v·h moves by ε ρ, ρ² = Σ_j v_j² r_j². A matrix of k class means with such noise in
  all of its entries has singular values up to (√k + √p) ε ρ, in a single class (1 + √(p/k)) ε ρ.
- What a layer subtracts from or multiplies into all entries, the mean within a LayerNorm say, is rounded once for all:
  v·h moves by up to ε' Σ_j |v_j| r_j, a few times over.
- Entries of a covariance are sums with a rounding of ε' √(C_ii C_jj), which moves vᵀCv by √p ε' Σ_j v_j² C_jj.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nc_callbacks.functional._common import row_blocks
from nc_callbacks.statistics.precision import wide_dtype

FLOAT32 = torch.finfo(torch.float32).eps

STEPS = 4
"""Roundings of one size that add up within a layer and its sums."""


def precision_of(*tensors: Tensor | None) -> float:
    """ε of the coarsest dtype among the tensors."""
    types = [t.dtype for t in tensors if t is not None and t.is_floating_point()]
    return max((torch.finfo(dtype).eps for dtype in types), default=FLOAT32)


def arithmetic(precision: float) -> float:
    """ε', what sums of features of this precision are rounded to."""
    return min(precision, FLOAT32)


def rounding_of_sums(means: Float[Tensor, "k p"], precision: float) -> Float[Tensor, " p"]:
    """Largest difference of class means by rounding of sums alone, for that of the samples averages out."""
    largest = torch.stack([means.detach().amax(0), -means.detach().amin(0)]).amax(0)
    return STEPS * max(arithmetic(precision), torch.finfo(means.dtype).eps) * largest.to(wide_dtype(means.device))


def least_variances(means: Float[Tensor, "k p"], precision: float) -> Float[Tensor, " k"]:
    """Variance that rounding of sums makes of samples that are all the same, class by class.

    Around a shift such samples lie within one unit in the last place, ε |m_cj|, and its square is summed.
    """
    return STEPS * arithmetic(precision) * (precision * means).square().sum(1)


@dataclass(frozen=True)
class Rounding:
    """How far rounding moves what is measured along directions, the columns v of matrices (p, r)."""

    precision: float
    """ε of the features."""
    squares: Float[Tensor, " p"]
    """r_j², mean squares of the features."""
    variances: Float[Tensor, " p"]
    """C_jj, within classes."""

    def of_features(self, v: Float[Tensor, "p r"]) -> Float[Tensor, " r"]:
        """Of v·h, for one sample."""
        common = v.abs().T @ self.squares.sqrt()
        return self.precision * self._independent(v) + STEPS * arithmetic(self.precision) * common

    def of_means(self, v: Float[Tensor, "p r"], k: int) -> Float[Tensor, " r"]:
        """Of v·m_c, root mean square over the classes, where the entries are rounded each for itself."""
        each = self.precision / 2 + STEPS * arithmetic(self.precision)
        return each * (1 + (len(v) / k) ** 0.5) * self._independent(v)

    def of_variance(self, v: Float[Tensor, "p r"]) -> Float[Tensor, " r"]:
        """Of vᵀCv."""
        sums = arithmetic(self.precision) * len(v) ** 0.5 * (v.square().T @ self.variances)
        return self.of_features(v).square() + sums

    def most_variance(self) -> float:
        """A bound on `of_variance` along every direction."""
        largest = self.precision * float(self.squares.amax().sqrt())
        common = STEPS * arithmetic(self.precision) * float(self.squares.sum().sqrt())
        sums = arithmetic(self.precision) * len(self.squares) ** 0.5 * float(self.variances.amax())
        return (largest + common) ** 2 + sums

    def _independent(self, v: Float[Tensor, "p r"]) -> Float[Tensor, " r"]:
        return (v.square().T @ self.squares).sqrt()


def centred(
    means: Float[Tensor, "k p"], global_mean: Float[Tensor, " p"] | None = None, precision: float | None = None
) -> Float[Tensor, "k p"]:
    """M = means − m in float64, with m the mean of the rows or `global_mean`; rows that are rounding alone are 0."""
    precision = checked_precision(precision, means, global_mean)
    bound = rounding_of_sums(means, precision)
    rows = deviations(means.to(torch.promote_types(means.dtype, bound.dtype)), global_mean)
    blocks = row_blocks(rows.shape[0], rows.shape[1], rows.dtype)
    rounding = torch.cat([(rows[block].detach().abs() <= bound).all(1) for block in blocks])
    return rows.masked_fill(rounding[:, None], 0) if rounding.any() else rows


def checked_precision(precision: float | None, *tensors: Tensor | None) -> float:
    """`precision`, or that of the coarsest of the tensors."""
    if precision is None:
        return precision_of(*tensors)
    if not 0 < precision < 1:
        raise ValueError(f"precision must be ε of a floating-point type, such as 2**-23 for float32, got {precision}.")
    return precision


def deviations(means: Float[Tensor, "k p"], global_mean: Float[Tensor, " p"] | None = None) -> Float[Tensor, "k p"]:
    """means − m as they are."""
    if global_mean is not None:
        if global_mean.shape != means.shape[1:]:
            expected = f"({means.shape[1]},) like a class mean"
            raise ValueError(f"global_mean must be {expected}, got {tuple(global_mean.shape)}.")
        return means - global_mean.to(means.dtype)
    once = means - means.mean(0)
    # Where all means share a large offset the first mean is rounded; what it left over is taken out here.
    once -= once.mean(0)
    return once


def hermitian_inverse(
    matrix: Float[Tensor, "p p"], rounding: Rounding, weight: Tensor | float = 1.0
) -> Float[Tensor, "p p"]:
    """The pseudo-inverse of a second moment, `weight` times a covariance, without directions that are rounding."""
    with torch.no_grad():
        values, vectors = torch.linalg.eigh(matrix)
        own = len(matrix) * torch.finfo(matrix.dtype).eps * values[-1].abs()
        kept = values > torch.maximum(weight * rounding.of_variance(vectors), own)
        removed = vectors[:, ~kept & (values.abs() > own)]
        least = torch.where(kept, values, torch.inf).min()
    if removed.shape[1] and matrix.requires_grad:
        remains = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device) - removed @ removed.T
        matrix = remains @ matrix @ remains
    if matrix.requires_grad:
        return torch.linalg.pinv(matrix, hermitian=True, atol=least / 2, rtol=0.0)
    return (vectors[:, kept] / values[kept]) @ vectors[:, kept].T
