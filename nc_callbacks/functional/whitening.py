"""Heads from moments: the class means whitened by the covariance within classes, Fisher's linear discriminant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from nc_callbacks.functional._common import full_precision, is_finite, scaled
from nc_callbacks.functional.rounding import Rounding, deviations
from nc_callbacks.functional.shrinkage import checked, chosen
from nc_callbacks.statistics import ClassMoments

Priors = Literal["uniform", "empirical"]


@full_precision
def whitened_weight(
    moments: ClassMoments, shrinkage: float | None = None, priors: Priors = "uniform"
) -> tuple[Float[Tensor, "k p"], Float[Tensor, " k"]]:
    """w_c = Σ⁻¹(m_c − m) and b_c = −½ m_cᵀΣ⁻¹m_c, with Σ = (1−a) Σ_W + a (tr Σ_W/p) I (Fisher's linear discriminant).

    argmax_c (w_c·h + b_c) is the class whose mean is nearest in the metric of Σ, and the softmax of w_c·h + b_c is the
    posterior where the classes are Gaussian with the covariance Σ. Proposition 2 of Seddik & Tamaazousti (2022) with
    equal E_j[f'] gives the same weight before Assumption 2 makes Σ isotropic, where it becomes that of centred means.

    What rounding of the features makes is no direction of the class means: where Σ is no larger than that, class means
    that differ by no more are taken for equal. Where classes differ and Σ is singular (fewer samples than features, a
    linear relation) it takes a shrinkage above 0.

    Args:
        moments: With Σ_W, from ``ClassStatistics(covariance="pooled")``.
        shrinkage: a in [0, 1]; by default the larger of `oas_shrinkage` and `gcv_shrinkage`, of which the one heeds how
            well few samples tell a covariance, and the other how well they tell the classes.
        priors: ``"empirical"`` adds log π_c to the bias.

    Returns:
        Weight and bias. A class without samples has a weight of 0 and the bias −∞, so it is never chosen. NaN where the
        moments are not finite.

    Raises:
        ValueError: An argument is out of its range, Σ_W was not gathered, fewer than two classes have samples, Σ_W is
            0, or Σ is singular along differences of class means.

    Example:
        >>> from nc_callbacks import ClassStatistics
        >>> statistics = ClassStatistics(num_classes=2)
        >>> h = torch.tensor([[1.0, 2.0], [1.0, -2.0], [-1.0, 2.0], [-1.0, -2.0]])
        >>> statistics.update(h + torch.tensor([[0.0, 1.0]]), torch.tensor([0, 0, 0, 0]))
        >>> statistics.update(h + torch.tensor([[0.0, 5.0]]), torch.tensor([1, 1, 1, 1]))
        >>> weight, bias = whitened_weight(statistics.compute(), shrinkage=0.0)
        >>> weight.tolist(), bias.tolist()  # within classes the variances are 1 and 4, and the means 4 apart
        ([[0.0, -0.5], [0.0, 0.5]], [-0.125, -3.125])
    """
    seen = checked(moments)
    assert seen.within is not None
    if shrinkage is None:
        shrinkage = chosen(seen.means, seen.within, seen.counts)
    found = whitened(seen.means, seen.within, shrinkage, seen.precision)
    bias = found.bias + found.common
    if priors == "empirical":
        bias = bias + seen.priors.log()
    elif priors != "uniform":
        raise ValueError(f'priors must be "uniform" or "empirical", got {priors!r}.')
    dtype, present = moments.means.dtype, moments.present
    if present.all():
        return found.weight.to(dtype), bias.to(dtype)
    rows = present.nonzero().squeeze(1)
    weight = torch.zeros_like(moments.means).index_copy(0, rows, found.weight.to(dtype))
    return weight, moments.means.new_full(present.shape, -torch.inf).index_copy(0, rows, bias.to(dtype))


@dataclass(frozen=True)
class Whitened:
    """A linear classifier from moments."""

    weight: Float[Tensor, "k p"]
    """w_c = Σ⁻¹(m_c − m); the rows add up to 0."""
    bias: Float[Tensor, " k"]
    """b_c less `common`: −½ (m_c − m)ᵀΣ⁻¹(m_c − m) − w_c·m."""
    common: Float[Tensor, ""]
    """−½ mᵀΣ⁻¹m, the part of the bias that is the same in all classes."""


def whitened(means: Float[Tensor, "k p"], within: Float[Tensor, "p p"], shrinkage: float, precision: float) -> Whitened:
    """The whitened head of these class means, in float64.

    Raises:
        ValueError: `shrinkage` is out of its range, Σ_W is 0, or Σ is singular along differences of class means.
    """
    if not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage must be a share between 0 and 1, got {shrinkage}.")
    means, scale = scaled(means)
    within = within.to(means.dtype) / scale / scale
    if not (is_finite(means) and is_finite(within)):
        nothing = means.sum() * torch.nan
        return Whitened(means * torch.nan, means.sum(1) * torch.nan, nothing)
    p, level = means.shape[1], within.trace() / means.shape[1]
    if level <= 0:
        raise ValueError(
            "Σ_W is 0: each class has one sample, or samples that are all the same, so there is nothing to whiten by. "
            "Use centred class means (centred_mean_weight, whiten=False), or more samples."
        )
    centre, centred = means.mean(0), deviations(means)
    sigma = (1 - shrinkage) * within + shrinkage * level * torch.eye(p, dtype=means.dtype, device=means.device)
    with torch.no_grad():
        dropped = _dropped(sigma, shrinkage * float(level), centred, means, within, precision)
    if dropped.shape[1]:
        remains = torch.eye(p, dtype=means.dtype, device=means.device) - dropped @ dropped.T
        sigma = remains @ sigma @ remains + sigma.diagonal().amax() * dropped @ dropped.T
        centre, centred = centre @ remains, centred @ remains
    factor = torch.linalg.cholesky(sigma)
    weight = torch.cholesky_solve(centred.T, factor).T
    of_centre = torch.cholesky_solve(centre[:, None], factor).squeeze(1)
    bias = -(centred * weight).sum(1) / 2 - weight @ centre
    return Whitened(weight / scale, bias, -(centre @ of_centre) / 2)


def _dropped(
    sigma: Float[Tensor, "p p"],
    least: float,
    centred: Float[Tensor, "k p"],
    means: Float[Tensor, "k p"],
    within: Float[Tensor, "p p"],
    precision: float,
) -> Float[Tensor, "p s"]:
    """Orthonormal directions along which both Σ, nowhere below `least`, and the class means may be rounding alone.

    Raises:
        ValueError: Σ is singular along a direction in which the class means differ.
    """
    variances = within.diagonal().clamp(min=0)
    squares = means.square().mean(0) + variances
    rounding = Rounding(precision, squares, variances)
    if least > rounding.most_variance():
        return sigma[:, :0]
    values, vectors = torch.linalg.eigh(sigma)
    own = len(sigma) * torch.finfo(sigma.dtype).eps * float(values[-1])
    doubtful = values <= rounding.of_variance(vectors).clamp(min=own)
    if not doubtful.any():
        return sigma[:, :0]
    space = vectors[:, doubtful]
    along = centred @ space
    if len(along) > along.shape[1]:
        along = torch.linalg.qr(along, mode="r").R
    _, singular, turn = torch.linalg.svd(along)
    directions = space @ turn.T
    between = torch.zeros(len(turn), dtype=sigma.dtype, device=sigma.device)
    between[: len(singular)] = singular / len(means) ** 0.5
    bound = torch.maximum(rounding.of_means(directions, len(means)), rounding.of_features(directions))
    there = between > bound
    spread = (sigma @ directions * directions).sum(0)
    if (there & ((spread <= own) | (least == 0))).any():
        raise ValueError(
            f"Σ is singular, or not known for rounding of the features (precision {precision:.2g}), along "
            f"{int(there.sum())} directions in which the class means differ: it takes a larger shrinkage "
            "(None chooses one), or more samples than features."
        )
    return directions[:, ~there]
