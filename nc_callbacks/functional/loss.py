"""Decomposition of the squared error around the least-squares classifier."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from nc_callbacks.functional._common import common_dtype, full_precision
from nc_callbacks.functional.rounding import Rounding, hermitian_inverse
from nc_callbacks.statistics import ClassMoments
from nc_callbacks.statistics.precision import wide_dtype


@full_precision
def mse_decomposition(
    weight: Float[Tensor, "k p"],
    bias: Float[Tensor, " k"] | None,
    moments: ClassMoments,
    weight_decay: float = 0.0,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """L = L_NC1 + L_NC2/3 + L_⊥, the parts of the regularised squared error (Han, Papyan & Donoho 2021).

    L = ½ (1/n) Σ_i ‖W h_i + b − e_{y_i}‖² + (λ/2)(‖W‖_F² + ‖b‖²), with e_c one-hot. With h̃ = (h, 1), W̃ = (W, b)
    (without bias h̃ = h, W̃ = W), S = (1/n) Σ_i h̃_i h̃_iᵀ + λ I and the least-squares classifier
    W_LS = Σ_c π_c e_c m̃_cᵀ S⁺:

    - L_NC1 = ½ tr(W_LS (Σ̃_W + λ I) W_LSᵀ): spread within classes, and decay;
    - L_NC2/3 = ½ Σ_c π_c ‖W_LS m̃_c − e_c‖²: class means that cannot be mapped to their labels;
    - L_⊥ = ½ tr((W̃ − W_LS) S (W̃ − W_LS)ᵀ): how far the classifier is from least squares.

    For balanced classes this is Han et al.'s form; π_c carries it to unbalanced ones. Directions along which features
    have no more than their rounding get no weight in W_LS.

    Args:
        weight: W, the classifier's weight.
        bias: b, or None.
        moments: Moments with Σ_W of the features. Every class must have samples (`ClassMoments.observed` drops those
            that have none; drop their rows of W and b too).
        weight_decay: λ ≥ 0, on W and b.

    Returns:
        The three parts, each ≥ 0, in units of the squared error.

    Raises:
        ValueError: The shapes do not fit, Σ_W is missing, a class has no samples, or λ < 0.

    Example:
        >>> from nc_callbacks import ClassStatistics
        >>> statistics = ClassStatistics(num_classes=2)
        >>> statistics.update(torch.eye(2), torch.tensor([0, 1]))
        >>> [round(part.item(), 6) for part in mse_decomposition(torch.eye(2), None, statistics.compute())]
        [0.0, 0.0, 0.0]
    """
    means = moments.means
    if weight.shape != means.shape:
        raise ValueError(
            f"weight must have the shape of the class means {tuple(means.shape)}, got {tuple(weight.shape)}."
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be ({len(weight)},) to go with the weight, got {tuple(bias.shape)}.")
    if moments.within is None:
        raise ValueError('The decomposition needs Σ_W: gather moments with covariance="pooled" or "per_class".')
    if not moments.present.all():
        raise ValueError("Every class must have samples; leave out the others with moments.observed().")
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay must be at least 0 and finite, got {weight_decay}.")
    result = common_dtype(weight, means)
    dtype = torch.promote_types(result, wide_dtype(means.device))
    priors = moments.priors.to(dtype)
    extended, w, within = means.to(dtype), weight.to(dtype), moments.within.to(dtype)
    if bias is not None:
        extended = torch.cat([extended, extended.new_ones(len(extended), 1)], 1)
        w = torch.cat([w, bias.to(dtype)[:, None]], 1)
        within = torch.nn.functional.pad(within, (0, 1, 0, 1))
    decay = weight_decay * torch.eye(extended.shape[1], dtype=dtype, device=extended.device)
    weighted = priors[:, None] * extended
    second_moment = within + weighted.T @ extended + decay
    finite = second_moment.isfinite().all()
    squares = (within + weighted.T @ extended).diagonal().clone()
    if bias is not None:
        squares[-1] = 0  # The 1 of h̃ has no rounding.
    rounding = Rounding(moments.precision, squares.nan_to_num(), within.diagonal().nan_to_num())
    least_squares = weighted @ hermitian_inverse(torch.where(finite, second_moment, 0), rounding)
    residual = least_squares @ extended.T - torch.eye(len(extended), dtype=dtype, device=extended.device)
    gap = w - least_squares
    parts = (
        ((least_squares @ (within + decay)) * least_squares).sum() / 2,
        (priors * residual.square().sum(0)).sum() / 2,
        ((gap @ second_moment) * gap).sum() / 2,
    )
    nc1, nc23, perp = (torch.where(finite, part.clamp(min=0), torch.nan).to(result) for part in parts)
    return nc1, nc23, perp
