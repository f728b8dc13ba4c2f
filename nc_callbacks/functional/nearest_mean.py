"""NC4, simplification to the nearest class mean."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nc_callbacks.functional._common import as_matrix, common_dtype, full_precision, magnitude


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
    dtype = common_dtype(features)
    centre = means.mean(0)
    around = means - centre
    # Scores over the size of the means, whose squares might leave the range of the features' type.
    scale = magnitude(around)
    around = (around / scale).to(dtype)
    scores = (features.to(dtype) - centre.to(dtype)) @ around.T - scale.to(dtype) / 2 * around.square().sum(1)
    return scores.argmax(1)


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
    logits = features.to(dtype) @ weight.to(dtype).T
    if bias is not None:
        logits = logits + bias.to(dtype)
    share = (logits.argmax(1) != nearest_mean(features, means)).to(dtype).mean()
    # argmax takes NaN for the largest, on both sides alike.
    return torch.where(logits.isfinite().all() & means.isfinite().all(), share, torch.nan)


def _check_features(features: Tensor, means: Tensor) -> None:
    if features.ndim != 2 or features.shape[1] != means.shape[1]:
        raise ValueError(
            f"features must be (n, {means.shape[1]}) to go with means of shape {tuple(means.shape)}, "
            f"got {tuple(features.shape)}."
        )
