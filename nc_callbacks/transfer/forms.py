"""The forms that a head of class means can have, and the linear classifier of each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from nc_callbacks.functional import centred_mean_weight
from nc_callbacks.functional.shrinkage import chosen
from nc_callbacks.functional.whitening import Priors, whitened
from nc_callbacks.statistics import ClassMoments

HeadMode = Literal["fixed", "trainable", "mixing"]
Normalize = Literal["spectral", "frobenius", "none"]

MOST_FEATURES = 16_384
"""Of a whitened head: Σ_W of so many takes 2 GiB in float64, and its Cholesky factor some 10¹² operations."""


def check_form(mode: str, normalize: str | None, scale: Any) -> None:
    """Refuse arguments out of range.

    Raises:
        ValueError: One is.
    """
    if mode not in ("fixed", "trainable", "mixing"):
        raise ValueError(f'mode must be "fixed", "trainable" or "mixing", got {mode!r}.')
    if normalize not in (None, "spectral", "frobenius", "none"):
        raise ValueError(f'normalize must be "spectral", "frobenius" or "none", got {normalize!r}.')
    if isinstance(scale, str) or not 0 < scale < math.inf:
        raise ValueError(f"scale must be a positive number, got {scale!r}; fit_scale and from_loader can fit it.")


def check_width(num_features: int, user: str = "whiten=True", instead: str = ", or whiten=False") -> None:
    """Refuse a Σ_W that is too large.

    Args:
        num_features: p.
        user: Who needs it.
        instead: What else there is to do.

    Raises:
        ValueError: It is.
    """
    if num_features > MOST_FEATURES:
        raise ValueError(
            f"{user} needs Σ_W, p × p numbers: with p = {num_features:,} that is "
            f"{8 * num_features**2 / 2**30:,.1f} GiB, and at most {MOST_FEATURES:,} features (2 GiB) are taken. "
            f"Average the features over positions, take a narrower layer{instead}."
        )


@dataclass(frozen=True)
class Form:
    """How class means become a linear classifier.

    Raises:
        ValueError: An argument is out of its range, or given where it says nothing.
    """

    normalize: Normalize | None
    """None: ``"none"`` where whitened, else ``"spectral"``."""
    whiten: bool
    shrinkage: float | None
    priors: Priors

    def __post_init__(self) -> None:
        if self.shrinkage is not None and not 0 <= self.shrinkage <= 1:
            raise ValueError(f"shrinkage must be a share between 0 and 1, or None, got {self.shrinkage!r}.")
        if self.priors not in ("uniform", "empirical"):
            raise ValueError(f'priors must be "uniform" or "empirical", got {self.priors!r}.')
        if not self.whiten and (self.shrinkage is not None or self.priors != "uniform"):
            raise ValueError(
                "shrinkage and priors are those of the whitened head: pass whiten=True, or leave them out."
            )

    @property
    def norm(self) -> Normalize:
        """The norm that the weight is divided by."""
        return self.normalize or ("none" if self.whiten else "spectral")

    def linear(
        self,
        means: Float[Tensor, "k p"],
        within: Float[Tensor, "p p"] | None,
        weights: Float[Tensor, " k"],
        precision: float,
    ) -> tuple[Float[Tensor, "k p"], Float[Tensor, " k"]]:
        """Weight and bias of these class means.

        The rows of the weight add up to 0, and so does the bias: less its mean, which no probability depends on, it
        keeps its digits in half precision.

        Args:
            means: Of classes that have samples.
            within: Σ_W, where whitened.
            weights: n_c, numbers of samples, or what is left of them after `CentredMeanHead.forget`.
            precision: ε of the features.

        Raises:
            ValueError: As `nc_callbacks.functional.whitened_weight`.
        """
        if not self.whiten:
            return centred_mean_weight(means, self.norm, precision), means.new_zeros(len(means))
        assert within is not None
        a = chosen(means, within, weights) if self.shrinkage is None else self.shrinkage
        found = whitened(means, within, a, precision)
        weight, bias = found.weight, found.bias
        if self.priors == "empirical":
            bias = bias + weights.log()
        bias = bias - bias.mean()
        if self.norm == "none":
            return weight, bias
        size = torch.linalg.matrix_norm(weight, 2 if self.norm == "spectral" else "fro")
        return weight / size, bias / size


def without_bias(
    weight: Float[Tensor, "k p"], bias: Float[Tensor, " k"], moments: ClassMoments
) -> Float[Tensor, "k p"]:
    """The weight that gives wᵀh ≈ w_cᵀh + b_c without a bias: w_c + b_c u, with uᵀh the best linear guess of 1.

    u = argmin E(1 − uᵀh)² = Σ⁻¹x̄ / (1 + x̄ᵀΣ⁻¹x̄), with x̄ the mean of the samples and Σ their covariance, shrunk as
    that within classes is. Behind ReLU, where all features share an offset, uᵀh is near 1; features around 0 have
    nothing to carry a bias with, and u is near 0.

    Args:
        weight, bias: Of the classifier.
        moments: Of the features, with Σ_W.
    """
    seen = moments.observed()
    assert seen.within is not None
    within = seen.within.to(seen.means.dtype)
    a = chosen(seen.means, within, seen.counts)
    gaps = seen.means - seen.sample_mean
    total = (1 - a) * within + (seen.priors[:, None] * gaps).T @ gaps
    total.diagonal().add_(a * within.trace() / len(within))
    direction = torch.linalg.solve(total, seen.sample_mean)
    direction = direction / (1 + seen.sample_mean @ direction)
    return weight + (bias[:, None].to(direction) * direction).to(weight.dtype)
