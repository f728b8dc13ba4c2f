"""Losses of classifier outputs and class indices."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from nc_callbacks.transfer.etf_head import DotRegression

__all__ = ["DotRegression", "GeneralisedCrossEntropy", "OneHotSquaredError"]


class OneHotSquaredError(nn.Module):
    """Mean over samples of the squared errors (f_c − 1[c = y])², over classes their mean or their sum.

    Args:
        over_classes: ``mean``, as `torch.nn.MSELoss` has it, or ``sum``: ‖f − e_y‖², k times as large. It matters
            beside weight decay, which weighs k times as much against the mean.

    Raises:
        ValueError: `over_classes` is neither.

    Example:
        >>> outputs, targets = torch.tensor([[1.0, 0.5]]), torch.tensor([0])
        >>> OneHotSquaredError()(outputs, targets), OneHotSquaredError("sum")(outputs, targets)
        (tensor(0.1250), tensor(0.2500))
    """

    def __init__(self, over_classes: Literal["mean", "sum"] = "mean") -> None:
        super().__init__()
        if over_classes not in ("mean", "sum"):
            raise ValueError(f"over_classes must be 'mean' or 'sum', got {over_classes!r}.")
        self.over_classes = over_classes

    def forward(self, outputs: Float[Tensor, "n k"], targets: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        """Scalar loss of outputs (n, k) and class indices (n,)."""
        error = F.mse_loss(outputs, F.one_hot(targets, outputs.shape[1]).to(outputs.dtype))
        return error * outputs.shape[1] if self.over_classes == "sum" else error


class GeneralisedCrossEntropy(nn.Module):
    """Cross-entropy with the generalised labels of Seddik & Tamaazousti (2022), eq. 4.

    −(1/n) Σ_i Σ_ℓ y_ℓ log p_ℓ with y_ℓ = α_c |δ_{ℓc} − ε| / (1 + (k−2) ε) for a sample of class c. With α = 1 and
    ε = 0 it is cross-entropy; with α_c = 1/(k π_c) the weights do not depend on the class proportions (Corollary 1).

    Args:
        balanced: α_c = 1/(k π_c), from the counts given to `set_class_counts`; else α = 1.
        epsilon: ε, in [0, 1).

    Raises:
        ValueError: ε is out of its range; in `forward`: class counts are missing.

    Example:
        >>> loss = GeneralisedCrossEntropy()
        >>> loss.set_class_counts(torch.tensor([30, 10]))
        >>> loss.alpha.tolist()
        [0.6666666865348816, 2.0]
    """

    alpha: Tensor | None

    def __init__(self, balanced: bool = True, epsilon: float = 0.0) -> None:
        super().__init__()
        if not 0 <= epsilon < 1:
            raise ValueError(f"epsilon must lie in [0, 1), got {epsilon}.")
        self.balanced = balanced
        self.epsilon = epsilon
        self.register_buffer("alpha", None)

    def set_class_counts(self, counts: Int[Tensor, " k"]) -> None:
        """Set α_c = 1/(k π_c) from the number of training samples of each class; an absent class has α_c = 0.

        Args:
            counts: n_c.
        """
        present = counts > 0
        self.alpha = torch.where(present, counts.sum() / (present.sum() * counts.clamp(min=1)), 0.0)

    def forward(self, outputs: Float[Tensor, "n k"], targets: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        """Scalar loss of outputs (n, k) and class indices (n,)."""
        k = outputs.shape[1]
        labels = F.one_hot(targets, k).to(outputs.dtype).sub(self.epsilon).abs() / (1 + (k - 2) * self.epsilon)
        losses = -(labels * outputs.log_softmax(1)).sum(1)
        if not self.balanced:
            return losses.mean()
        if self.alpha is None:
            raise ValueError("The balanced loss needs the class counts: call set_class_counts(counts) before training.")
        return (self.alpha.to(outputs)[targets] * losses).mean()
