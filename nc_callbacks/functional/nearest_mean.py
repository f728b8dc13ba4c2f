"""NC4, simplification to the nearest class mean."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nc_callbacks.functional._common import as_matrix, common_dtype, full_precision, magnitude
from nc_callbacks.statistics.threads import one_thread

_NEAR_ORIGIN = 4
"""Squared norm of the mean of the means, of their mean squared distance from it, up to which features stay as they are.

There ‖h‖ is no more than a few times ‖h − m‖, and so is what rounding does to their products.
"""


@dataclass(frozen=True)
class NearestMean:
    """The nearest class mean as an affine map, a row of scores per sample, of which the largest is the nearest's."""

    centre: Float[Tensor, " p"] | None
    """What is taken off the features first; None where that would save no digits."""
    weight: Float[Tensor, "k p"]
    offset: Float[Tensor, " k"]

    @classmethod
    def of(cls, means: Float[Tensor, "k p"], dtype: torch.dtype) -> NearestMean:
        """That of class means, for features in `dtype`."""
        centre = means.mean(0)
        around = means - centre
        # Scores over the size of the means, whose squares might leave the range of the features' type.
        scale = magnitude(around)
        around = around / scale
        squares = around.square().sum(1)
        weight, half = around.to(dtype), scale / 2
        # Elsewhere than on a CPU the question would wait for the device.
        if means.device.type == "cpu" and (centre / scale).square().sum() <= _NEAR_ORIGIN * squares.mean():
            return cls(None, weight, -(half * squares + around @ centre).to(dtype))
        return cls(centre.to(dtype), weight, -(half.to(dtype) * weight.square().sum(1)))

    def __call__(self, features: Float[Tensor, "n p"]) -> Int[Tensor, " n"]:
        """Class indices of the nearest means."""
        return torch.addmm(self.offset, self.taken_off(features), self.weight.T).argmax(1)

    def taken_off(self, features: Float[Tensor, "n p"]) -> Float[Tensor, "n p"]:
        """Features around the centre, in the weight's dtype."""
        features = features.to(self.weight.dtype)
        return features if self.centre is None else features - self.centre


@dataclass(frozen=True)
class _Both:
    """A classifier and the nearest class mean as one affine map."""

    nearest: NearestMean
    weight: Float[Tensor, "2k p"]
    bias: Float[Tensor, " 2k"]
    known: Tensor
    """Whether all means are finite."""

    @classmethod
    def of(cls, weight: Tensor, means: Tensor, bias: Tensor | None, dtype: torch.dtype) -> _Both:
        nearest = NearestMean.of(means, dtype)
        logits = weight.new_zeros(len(weight), dtype=dtype) if bias is None else bias.to(dtype)
        if nearest.centre is not None:
            logits = logits + weight.to(dtype) @ nearest.centre
        weight, bias = torch.cat([weight.to(dtype), nearest.weight]), torch.cat([logits, nearest.offset])
        return cls(nearest, weight, bias, means.isfinite().all())

    def mismatch(self, features: Float[Tensor, "n p"]) -> Float[Tensor, ""]:
        """Share of samples on which they disagree; NaN where a mean or a logit is not finite."""
        scores = torch.addmm(self.bias, self.nearest.taken_off(features), self.weight.T)
        with one_thread(scores.device):
            return self._mismatch(scores)

    def _mismatch(self, scores: Float[Tensor, "n 2k"]) -> Float[Tensor, ""]:
        k = len(self.weight) // 2
        logits, nearest = scores.split(k, 1)
        # `max` finds the first of the largest faster than `argmax` where there are many.
        share = (logits.max(1).indices != nearest.max(1).indices).to(scores.dtype).mean()
        if self.known.device.type == "cpu" and scores.sum().isfinite():
            # No entry is other than finite then; large ones add up to infinity, and are looked at one by one.
            return share if self.known else share.fill_(torch.nan)
        # argmax takes NaN for the largest, on both sides alike.
        return torch.where(logits.isfinite().all() & self.known, share, torch.nan)


@full_precision
def nearest_mean(features: Float[Tensor, "n p"], means: Float[Tensor, "k p"]) -> Int[Tensor, " n"]:
    """argmin_c ‖h − m_c‖ for each sample, as a class index in 0…k−1.

    Distances are compared in the features' precision, around the mean of the means, so that a common offset costs no
    digits.

    Args:
        features: h, one row per sample.
        means: Uncentred class means.

    Raises:
        ValueError: The numbers of features differ, or there are fewer than two classes.

    Example:
        >>> nearest_mean(torch.tensor([[0.9, 0.0], [-2.0, 1.0]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        tensor([0, 1])
    """
    means = as_matrix("means", means)
    _check_features(features, means)
    return NearestMean.of(means, common_dtype(features))(features)


@full_precision
def nc4(
    features: Float[Tensor, "n p"],
    weight: Float[Tensor, "k p"],
    means: Float[Tensor, "k p"],
    bias: Float[Tensor, " k"] | None = None,
) -> Float[Tensor, ""]:
    """Share of samples where argmax_c (W h + b)_c ≠ argmin_c ‖h − m_c‖, in [0, 1]; 0 at collapse (Papyan et al. 2020).

    Args:
        features: h, one row per sample.
        weight: W, the classifier's weight.
        means: Uncentred class means (of the training split).
        bias: b, or None for 0.

    Raises:
        ValueError: The shapes do not fit, or there are fewer than two classes.

    Example:
        >>> h = torch.tensor([[1.0, 0.2], [0.1, 1.0]])
        >>> nc4(h, weight=torch.eye(2), means=torch.eye(2))
        tensor(0.)
    """
    if weight.shape != means.shape:
        raise ValueError(
            f"weight and means must have the same shape (k, p), got {tuple(weight.shape)} and {tuple(means.shape)}."
        )
    _check_features(features, means)
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be ({len(weight)},) to go with the weight, got {tuple(bias.shape)}.")
    dtype = common_dtype(features, weight)
    features, weight, means = features.detach(), weight.detach(), as_matrix("means", means).detach()
    if dtype != common_dtype(features):
        logits = features.to(dtype) @ weight.to(dtype).T
        if bias is not None:
            logits = logits + bias.to(dtype)
        share = (logits.argmax(1) != nearest_mean(features, means)).to(dtype).mean()
        return torch.where(logits.isfinite().all() & means.isfinite().all(), share, torch.nan)
    return _Both.of(weight, means, bias, dtype).mismatch(features)


def _check_features(features: Tensor, means: Tensor) -> None:
    if features.ndim != 2 or features.shape[1] != means.shape[1]:
        raise ValueError(
            f"features must be (n, {means.shape[1]}) to go with means of shape {tuple(means.shape)}, "
            f"got {tuple(features.shape)}."
        )
