"""How far Σ_W is shrunk to a multiple of the identity: formulas that need the moments alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from nc_callbacks.functional._common import check_normal, full_precision, is_finite, scaled
from nc_callbacks.statistics import ClassMoments

_STEP = math.log(10) / 4
"""Of the first search for a/(1−a), in its logarithm."""


@full_precision
def gcv_shrinkage(moments: ClassMoments) -> Float[Tensor, ""]:
    """The shrinkage with which a linear model of the one-hot labels has the least generalised cross-validation error.

    Whitening by (1−a) Σ_W + a l I, l = tr Σ_W/p, spans the directions of the ridge regression of the labels on the
    features with the penalty τ = l a/(1−a) a sample. Its squared error with each sample left out in turn is near
    RSS(τ)/(1 − df(τ)/n)² (Golub, Heath & Wahba 1979), where df(τ) = 1 + Σ_j λ_j/(λ_j + τ), with λ the eigenvalues of
    Σ_T, and RSS follow from the moments. The more of the features is noise, the larger a is.

    Args:
        moments: With Σ_W.

    Raises:
        ValueError: Σ_W was not gathered or is 0, or fewer than two classes have samples.

    Example:
        >>> from nc_callbacks import ClassStatistics
        >>> targets, generator = torch.arange(60) % 3, torch.Generator().manual_seed(0)
        >>> noise = torch.randn(60, 20, generator=generator) * torch.arange(1, 21) / 5
        >>> statistics = ClassStatistics(num_classes=3)
        >>> statistics.update(3 * torch.eye(3, 20)[targets] + noise, targets)
        >>> bool(gcv_shrinkage(statistics.compute()) < 0.01)  # the classes differ where there is the least noise
        True
    """
    seen = checked(moments)
    assert seen.within is not None
    return moments.means.new_tensor(gcv(seen.means, seen.within, seen.counts))


@full_precision
def oas_shrinkage(moments: ClassMoments) -> Float[Tensor, ""]:
    """The share a of a multiple of the identity with which Σ_W is nearest to the covariance that it estimates.

    The oracle-approximating shrinkage of Chen, Wiesel, Eldar & Hero (2010), eq. 23, with the degrees of freedom of the
    pooled covariance, n − k, for the number of samples: near tr²Σ_W/(n tr Σ_W²) where n is large, 1 where there is
    nothing to estimate from.

    Args:
        moments: With Σ_W.

    Raises:
        ValueError: Σ_W was not gathered or is 0, or fewer than two classes have samples.

    Example:
        >>> from nc_callbacks import ClassStatistics
        >>> statistics = ClassStatistics(num_classes=2)
        >>> statistics.update(torch.randn(2000, 8) * torch.arange(1, 9), torch.arange(2000) % 2)
        >>> bool(0 < oas_shrinkage(statistics.compute()) < 0.01)
        True
    """
    seen = checked(moments)
    assert seen.within is not None
    return oas(seen.within, float(seen.counts.sum()) - len(seen.counts)).to(moments.means.dtype)


def oas(covariance: Float[Tensor, "p p"], degrees: float) -> Float[Tensor, ""]:
    """Eq. 23 of Chen et al. (2010) for a covariance with that many degrees of freedom."""
    covariance, _ = scaled(covariance)
    p, trace = len(covariance), covariance.trace()
    squares = covariance.square().sum()
    numerator = (1 - 2 / p) * squares + trace.square()
    denominator = (degrees + 1 - 2 / p) * (squares - trace.square() / p)
    # An isotropic covariance is its own target.
    return torch.where(denominator > 0, (numerator / denominator).clamp(max=1), torch.ones_like(trace))


def checked(moments: ClassMoments) -> ClassMoments:
    """The moments of the classes that have samples, in float64, with Σ_W.

    Raises:
        ValueError: Σ_W was not gathered or has lost its digits, or fewer than two classes have samples.
    """
    if moments.within is None:
        raise ValueError(
            "Whitened heads and scores need the within-class covariance, but these moments were gathered with "
            'covariance="none". Use ClassStatistics(..., covariance="pooled").'
        )
    check_normal("within", moments.within)
    seen = moments.observed()
    if len(seen.counts) < 2:
        raise ValueError(f"At least 2 classes must have samples, {len(seen.counts)} have.")
    return seen


@torch.no_grad()
def gcv(means: Float[Tensor, "k p"], within: Float[Tensor, "p p"], counts: Tensor) -> float:
    """`gcv_shrinkage` of classes with these numbers (or weights) of samples."""
    means, scale = scaled(means)
    within = within.to(means.dtype) / scale / scale
    n = counts.sum().to(means.dtype)
    priors = counts.to(means.dtype) / n
    gaps = means - priors @ means
    level = float(within.trace()) / len(within)
    if not (is_finite(means) and is_finite(within)) or level <= 0:
        return 1.0
    values, vectors = torch.linalg.eigh(within + (priors[:, None] * gaps).T @ gaps)
    values = values.clamp(min=0)
    products = ((priors[:, None] * gaps) @ vectors).square().sum(0)
    labels = (priors - priors.square()).sum()

    def error(log_odds: float) -> float:
        inverse = 1 / (values + level * math.exp(log_odds))
        left = 1 - (1 + (values * inverse).sum()) / n
        rest = labels - (products * inverse * (2 - values * inverse)).sum()
        # Where the model has as many directions as there are samples, both are rounding.
        return float(rest.clamp(min=0) / left.square()) if left > 1e-4 else math.inf

    return 1 / (1 + math.exp(-least(error, -20.0, 10.0)))


def least(error: Callable[[float], float], low: float, high: float) -> float:
    """Where a function of one number is least: on a grid, then by golden sections around its best point."""
    grid = [low + _STEP * i for i in range(int((high - low) / _STEP) + 1)]
    middle = min(grid, key=error)
    left, right, ratio = middle - _STEP, middle + _STEP, (5**0.5 - 1) / 2
    for _ in range(40):
        inner, outer = right - ratio * (right - left), left + ratio * (right - left)
        left, right = (left, outer) if error(inner) < error(outer) else (inner, right)
    return (left + right) / 2


def chosen(means: Float[Tensor, "k p"], within: Float[Tensor, "p p"], counts: Tensor) -> float:
    """The shrinkage where none is given: the larger of the two, for classes with these numbers of samples."""
    degrees = max(0.0, float(counts.sum()) - len(counts))
    return max(float(oas(within, degrees)), gcv(means, within, counts))
