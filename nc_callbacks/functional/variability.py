"""NC1, within-class variability: how small the spread within classes is beside the spread between them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nc_callbacks.functional._common import (
    as_matrix,
    check_normal,
    common_dtype,
    full_precision,
    is_finite,
    product,
    scaled,
)
from nc_callbacks.functional.directions import DIGITS, Directions, directions_of
from nc_callbacks.functional.pairs import checked_traces, mean_variance_ratio
from nc_callbacks.functional.rounding import (
    centred,
    checked_precision,
    deviations,
    precision_of,
    rounding_of_sums,
)


@full_precision
def nc1(
    within: Float[Tensor, "p p"],
    means: Float[Tensor, "k p"],
    global_mean: Float[Tensor, " p"] | None = None,
    precision: float | None = None,
) -> Float[Tensor, ""]:
    """tr(Σ_W Σ_B⁺) / k, dimensionless, in [0, ∞); 0 at collapse (Papyan, Han & Donoho 2020).

    With the pseudo-inverse P = M⁺ of the centred means, Σ_B⁺ = k P Pᵀ, so the value is tr(Pᵀ Σ_W P): a thin SVD of
    the (k, p) matrix M, no p × p matrix inverted, and a gradient that exists at a simplex ETF too, where all singular
    values are equal. With more classes than features the SVD is that of the triangle R of M = QR, for M enters by
    MᵀM = RᵀR alone. A direction of M that rounding of the features can produce does not exist and is left out; one
    warning says so where fewer than three digits of the value are known.
    Han et al.'s notebook and Lindegaard's code leave out the division by k.

    Args:
        within: Σ_W, the pooled within-class covariance (divisor n).
        means: Uncentred class means.
        global_mean: Vector to centre at; by default the mean of the class means. The part of it that is rounding
            makes no direction.
        precision: ε of the features (`ClassMoments.precision`); by default that of the coarsest dtype given. Features
            in float32 whose moments are in float64 need it.

    Returns:
        The scalar; infinity where all means coincide (Σ_B = 0), NaN where Σ_W is 0 too or an entry is not finite.

    Raises:
        ValueError: The shapes do not fit, or there are fewer than two classes.

    Example:
        >>> nc1(torch.eye(2) / 100, torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        tensor(0.0050)
    """
    return _nc1(_spread(within, means, global_mean, precision))


@full_precision
def class_separation(
    within: Float[Tensor, "p p"],
    means: Float[Tensor, "k p"],
    counts: Int[Tensor, " k"],
    precision: float | None = None,
) -> Float[Tensor, ""]:
    """D = tr(Σ_W Σ_B'⁺), Σ_B' = Σ_c π_c (m_c − x̄)(m_c − x̄)ᵀ with x̄ = Σ_c π_c m_c; in [0, ∞), 0 at collapse.

    The separation fuzziness of the law of data separation: over the layers of a trained network log D falls on a line
    (He & Su 2023). k times `nc1` where all classes have as many samples.

    Args:
        within: Σ_W, the pooled within-class covariance (divisor n).
        means: Uncentred class means.
        counts: n_c, samples of each class.
        precision: ε of the features (`ClassMoments.precision`); by default that of the coarsest dtype given.

    Returns:
        The scalar; infinity where all means coincide, NaN where Σ_W is 0 too or an entry is not finite.

    Raises:
        ValueError: The shapes do not fit, or there are fewer than two classes.

    Example:
        >>> means = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> class_separation(torch.eye(2) / 100, means, torch.tensor([50, 50]))
        tensor(0.0100)
    """
    return _separation(_spread(within, means, None, precision), counts)


@full_precision
def nc1_and_separation(
    within: Float[Tensor, "p p"],
    means: Float[Tensor, "k p"],
    counts: Int[Tensor, " k"],
    global_mean: Float[Tensor, " p"] | None,
    precision: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """`nc1` and `class_separation` by one search for the directions of the class means, with one warning at the most.

    `global_mean` is an average of the class means.
    """
    spread = _spread(within, means, global_mean, precision)
    return _nc1(spread), _separation(spread, counts)


@dataclass(frozen=True)
class _Spread:
    """Σ_W and the class means, scaled together, and the directions that these have."""

    within: Tensor
    means: Tensor
    centred: Tensor
    directions: Directions | None
    """None where an entry is not finite."""
    dtype: torch.dtype
    """Of the result."""

    @property
    def without_directions(self) -> Tensor | None:
        """The value where there is none: NaN, or tr Σ_W / 0, for Σ_B = 0."""
        if self.directions is None:
            return (torch.nan * (self.means.sum() + self.within.sum())).to(self.dtype)
        return None if len(self.directions.singular) else (self.within.trace() / 0).to(self.dtype)


def _spread(within: Tensor, means: Tensor, global_mean: Tensor | None, precision: float | None) -> _Spread:
    dtype = common_dtype(within, means)
    precision = checked_precision(precision, within, means, global_mean)
    means = as_matrix("means", means)
    k, p = means.shape
    if within.shape != (p, p):
        raise ValueError(f"within must be ({p}, {p}) to go with means of shape ({k}, {p}), got {tuple(within.shape)}.")
    check_normal("within", within)
    means, scale = scaled(means)
    if scale != 1:
        within = within.to(means.dtype) / scale / scale
    if not (is_finite(means) and is_finite(within)):
        return _Spread(within, means, means, None, dtype)
    centre, centre_precision = None, 0.0
    if global_mean is not None:
        centre, centre_precision = global_mean.to(means.dtype) / scale, precision_of(global_mean)
    centred_means = deviations(means, centre)
    with torch.no_grad():
        directions = directions_of(means, within, precision, centre, centre_precision)
    if directions.digits < DIGITS:
        warnings.warn(directions.warning(precision), stacklevel=4)
    return _Spread(within, means, centred_means, directions, dtype)


def _nc1(spread: _Spread) -> Tensor:
    if (value := spread.without_directions) is not None:
        return value
    assert spread.directions is not None
    found = spread.directions
    if spread.centred.requires_grad or spread.within.requires_grad:
        inverse = found.inverse(spread.centred) if spread.centred.requires_grad else found.kept / found.singular
        value = (inverse * product(spread.within, inverse)).sum()
    else:
        value = (found.kept / found.singular * (found.spread / found.singular)).sum()
    return value.clamp(min=0).to(spread.dtype)


def _separation(spread: _Spread, counts: Tensor) -> Tensor:
    k = len(spread.means)
    if counts.shape != (k,):
        raise ValueError(
            f"counts must be ({k},) to go with means of shape {tuple(spread.means.shape)}, got {tuple(counts.shape)}."
        )
    if (value := spread.without_directions) is not None:
        return value
    assert spread.directions is not None
    kept = spread.directions.kept
    share = counts.to(spread.means.dtype) / counts.sum()
    # Weights turn the class means within their span: none of its directions appears or goes.
    rows = share.sqrt()[:, None] * ((spread.means - share @ spread.means) @ kept)
    found = product(spread.within, kept) if spread.within.requires_grad else spread.directions.spread
    inner = kept.T @ found
    return torch.linalg.solve(rows.T @ rows, inner).trace().clamp(min=0).to(spread.dtype)


@full_precision
def nc1_quotient(
    within: Float[Tensor, "p p"] | Float[Tensor, ""],
    means: Float[Tensor, "k p"],
    global_mean: Float[Tensor, " p"] | None = None,
    precision: float | None = None,
) -> Float[Tensor, ""]:
    """tr Σ_W / tr Σ_B, dimensionless, in [0, ∞); 0 at collapse (Tirer, Huang & Niles-Weed 2023).

    Args:
        within: Σ_W, or its trace alone.
        means: Uncentred class means.
        global_mean: Vector to centre at; by default the mean of the class means.
        precision: ε of the features (`ClassMoments.precision`); by default that of the coarsest dtype given. A class
            mean that is no further from the centre than its sums are rounded is at the centre.

    Raises:
        ValueError: The shapes do not fit, or there are fewer than two classes.

    Example:
        >>> nc1_quotient(torch.eye(2) / 100, torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        tensor(0.0200)
    """
    dtype = common_dtype(within, means)
    means = as_matrix("means", means)
    p = means.shape[1]
    if within.shape not in ((p, p), ()):
        raise ValueError(f"within must be ({p}, {p}), or its trace alone, got shape {tuple(within.shape)}.")
    check_normal("within", within)
    centred_means, scale = scaled(centred(means, global_mean, precision))
    within = within.to(centred_means.dtype)
    total = within.trace() if within.ndim == 2 else within
    return (total / scale / scale / (centred_means.norm().square() / len(means))).to(dtype)


@full_precision
def nc1_cdnv(
    traces: Float[Tensor, " k"], means: Float[Tensor, "k p"], precision: float | None = None
) -> Float[Tensor, ""]:
    """Class-distance normalised variance: mean over c < c' of (v_c + v_c') / (2 ‖m_c − m_c'‖²) (Galanti et al. 2021).

    Dimensionless, in [0, ∞); 0 at collapse; infinity where two class means coincide.

    Args:
        traces: v_c = tr C_c, the within-class variances.
        means: Uncentred class means.
        precision: ε of the features (`ClassMoments.precision`); by default that of the coarsest dtype given. Class
            means no further apart than their sums are rounded coincide.

    Raises:
        ValueError: The shapes do not fit, or there are fewer than two classes.

    Example:
        >>> nc1_cdnv(torch.tensor([0.1, 0.3]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        tensor(0.0500)
    """
    dtype = common_dtype(traces, means)
    precision = checked_precision(precision, means)
    means = as_matrix("means", means)
    check_normal("traces", traces)
    nearest = rounding_of_sums(means, precision).norm()
    centred_means = deviations(means.to(torch.promote_types(means.dtype, nearest.dtype)))
    return mean_variance_ratio(centred_means, checked_traces(traces, centred_means), nearest).to(dtype)
