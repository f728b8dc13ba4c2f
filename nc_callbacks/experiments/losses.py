"""Losses of classifier outputs and class indices."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class OneHotSquaredError(nn.Module):
    """Mean over samples and classes of (f_c − 1[c = y])².

    Example:
        >>> import torch
        >>> OneHotSquaredError()(torch.tensor([[1.0, 0.5]]), torch.tensor([0]))
        tensor(0.1250)
    """

    def forward(self, outputs: Float[Tensor, "n k"], targets: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        return F.mse_loss(outputs, F.one_hot(targets, outputs.shape[1]).to(outputs.dtype))
