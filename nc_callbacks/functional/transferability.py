"""Scores of a source: how well features suit a target, from the moments of one pass, without training."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from nc_callbacks.functional._common import full_precision, is_finite, scaled
from nc_callbacks.functional.rounding import Rounding, hermitian_inverse
from nc_callbacks.functional.shrinkage import checked, oas
from nc_callbacks.statistics import ClassMoments

_STEP = math.log(10) / 2
"""Of the first search for α/β, in its logarithm."""


@full_precision
def log_evidence(moments: ClassMoments) -> Float[Tensor, ""]:
    """LogME: the evidence of a linear model for the one-hot labels, log p(y|H)/n, mean over classes (You et al. 2021).

    For each class, y ∈ {0, 1}ⁿ is Hw plus noise of variance 1/β, with w ~ N(0, I/α), and α and β are those of the
    largest evidence. With λ the r non-zero eigenvalues of HᵀH = n (Σ_W + Σ_c π_c m_c m_cᵀ), z = Vᵀ(n_c m_c), t = α/β
    and E(t) = n_c − Σ_j z_j²/(λ_j + t), the best β is n/E(t), and what is left,

        n/2 log(n / (2π E(t))) − n/2 + ½ Σ_{j ≤ r} log(t / (t + λ_j)),

    is maximised over t. It holds ½(p − r) log α − ½(p − r) log α = 0 of the directions that the features do not have.
    At collapse the evidence is unbounded; t then stays above what rounding of the features makes of it.

    Args:
        moments: With Σ_W, from ``ClassStatistics(covariance="pooled")``.

    Returns:
        The scalar, in nats a sample; the larger, the better. NaN where the moments are not finite.

    Raises:
        ValueError: Σ_W was not gathered, or fewer than two classes have samples.

    Example:
        >>> from nc_callbacks import ClassStatistics
        >>> targets, generator = torch.arange(300) % 3, torch.Generator().manual_seed(0)
        >>> noise = torch.randn(300, 4, generator=generator)
        >>> scores = []
        >>> for spread in (0.1, 10.0):
        ...     statistics = ClassStatistics(num_classes=3)
        ...     statistics.update(torch.eye(3, 4)[targets] + spread * noise, targets)
        ...     scores.append(round(log_evidence(statistics.compute()).item(), 2))
        >>> scores
        [0.84, -0.87]
    """
    seen = checked(moments)
    second, scale = scaled(seen.second_moment)
    if not is_finite(second):
        return moments.means.sum() * torch.nan
    n, counts = float(seen.counts.sum()), seen.counts.to(second.dtype)
    values, vectors = torch.linalg.eigh(second)
    assert seen.within is not None
    variances = seen.within.to(second.dtype).diagonal().clamp(min=0) / scale
    rounding = Rounding(seen.precision, second.diagonal().clamp(min=0), variances).of_variance(vectors)
    own = len(second) * torch.finfo(second.dtype).eps * values[-1]
    kept = values > torch.maximum(rounding, own)
    lengths = n * values[kept]
    means = seen.means.to(second.dtype) / scale**0.5
    targets = (counts[:, None] * (means @ vectors[:, kept])).square()
    least = torch.finfo(second.dtype).eps * counts * max(1, len(lengths))

    def evidence(log_t: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
        t = log_t.exp()[:, None]
        errors = torch.maximum(counts - (targets / (lengths + t)).sum(1), least)
        return n / 2 * ((n / (2 * math.pi * errors)).log() - 1) - torch.log1p(lengths / t).sum(1) / 2

    if not len(lengths):
        return (((n / (2 * math.pi * counts)).log() - 1) / 2).mean().to(moments.means.dtype)
    largest = float(lengths.amax().detach().log())
    return (_maximum(evidence, largest, seen.precision, counts) / n).mean().to(moments.means.dtype)


def _maximum(
    evidence: Callable[[Tensor], Tensor], largest: float, precision: float, counts: Float[Tensor, " k"]
) -> Float[Tensor, " k"]:
    """The largest value over log t, class by class: on a grid, then by golden sections around its best point."""
    with torch.no_grad():
        low = largest + max(2 * math.log(precision), -2 * 23.0)
        grid = torch.arange(low, largest + 20, _STEP, dtype=counts.dtype, device=counts.device)
        values = torch.stack([evidence(point.expand(len(counts))) for point in grid])
        middle = grid[values.argmax(0)]
        left, right = (middle - _STEP).clamp(min=low), middle + _STEP
        ratio = (5**0.5 - 1) / 2
        for _ in range(40):
            inner, outer = right - ratio * (right - left), left + ratio * (right - left)
            better = evidence(inner) > evidence(outer)
            left, right = torch.where(better, left, inner), torch.where(better, outer, right)
    # The derivative in t is 0 there, so that of the moments alone is left.
    return evidence((left + right) / 2)


@full_precision
def h_score(moments: ClassMoments, regularised: bool = False) -> Float[Tensor, ""]:
    """tr(Σ_T⁺ Σ_B'), in [0, min(k − 1, p)] (Bao et al. 2019): the variance of the features that the class explains.

    Σ_B' = Σ_c π_c (m_c − x̄)(m_c − x̄)ᵀ, with x̄ the mean of the samples, and Σ_T = Σ_W + Σ_B', the covariance of the
    features. Regularised (Ibrahim et al. 2022): (1−a) tr(Σ_a⁻¹ Σ_B') with Σ_a = (1−a) Σ_T + a (tr Σ_T/p) I, which is
    needed where the samples are few for the features, for tr(Σ_T⁺ Σ_B') nears k − 1 then, whatever the features. Their
    a is that of Ledoit & Wolf (2004), which needs all features; here it is that of Chen et al. (2010), as in
    `oas_shrinkage`, with n − 1 degrees of freedom.

    Args:
        moments: With Σ_W, from ``ClassStatistics(covariance="pooled")``.
        regularised: Shrink Σ_T.

    Returns:
        The scalar, dimensionless; the larger, the better. NaN where the moments are not finite.

    Raises:
        ValueError: Σ_W was not gathered, or fewer than two classes have samples.

    Example:
        >>> from nc_callbacks import ClassStatistics
        >>> statistics = ClassStatistics(num_classes=2)
        >>> h = torch.tensor([[2.0, 0.0], [4.0, 0.0], [-2.0, 0.0], [-4.0, 0.0]])
        >>> statistics.update(h, torch.tensor([0, 0, 1, 1]))
        >>> h_score(statistics.compute())  # a variance of 9 between classes, and of 1 within
        tensor(0.9000, dtype=torch.float64)
    """
    seen = checked(moments)
    assert seen.within is not None
    means, scale = scaled(seen.means)
    within = seen.within.to(means.dtype) / scale / scale
    if not (is_finite(means) and is_finite(within)):
        return moments.means.sum() * torch.nan
    priors = seen.counts.to(means.dtype) / seen.counts.sum()
    rows = priors.sqrt()[:, None] * (means - priors @ means)
    total = within + rows.T @ rows
    level = total.trace() / len(total)
    if level <= 0:
        return level.to(moments.means.dtype)
    if regularised:
        a = oas(total, float(seen.counts.sum()) - 1)
        eye = torch.eye(len(total), dtype=total.dtype, device=total.device)
        factor = torch.linalg.cholesky((1 - a) * total + a * level * eye)
        score = (1 - a) * (rows * torch.cholesky_solve(rows.T, factor).T).sum()
    else:
        variances = within.diagonal().clamp(min=0)
        rounding = Rounding(seen.precision, priors @ means.square() + variances, variances)
        score = (rows * (rows @ hermitian_inverse(total, rounding))).sum()
    return score.clamp(min=0, max=min(len(rows) - 1, len(total))).to(moments.means.dtype)
