"""Symmetric quasi-interpolation (SQI): how far outputs are from one-hot labels, and how evenly."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nc_callbacks.functional._common import class_labels, common_dtype, full_precision
from nc_callbacks.statistics.errors import softmax_errors


@full_precision
def quasi_interpolation_errors(
    outputs: Float[Tensor, "n k"], targets: Int[Tensor, " n"], softmax: bool = False
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n others"]]:
    """ε_i = 1 − f_i[y_i], and ε̃_{i,c} = f_i[c] for the k − 1 classes c ≠ y_i (Lindegaard 2021, eq. 7).

    In units of the outputs: a one-hot label is 1. `nc_callbacks.OutputErrors` gives their means and spreads for a
    whole data set without keeping any outputs.

    Args:
        outputs: f, raw or after a softmax.
        targets: Class indices in 0…k−1.
        softmax: The outputs are logits, and the errors are those of their softmax, with ε as the sum of the other
            probabilities: it keeps its digits where 1 − f has none left, in float32 from a margin of 10 on.

    Returns:
        ε (n,) and ε̃ (n, k − 1), the latter with the classes in order and the target left out.

    Raises:
        ValueError: The shapes do not fit, there are fewer than two classes, or a target lies outside 0…k−1.

    Example:
        >>> epsilon, off = quasi_interpolation_errors(torch.tensor([[0.25, 0.5, 0.25]]), torch.tensor([1]))
        >>> epsilon.tolist(), off.tolist()
        ([0.5], [[0.25, 0.25]])
    """
    if outputs.ndim != 2 or outputs.shape[1] < 2 or targets.shape != outputs.shape[:1]:
        raise ValueError(
            f"outputs must be (n, k) with k ≥ 2, targets (n,); got {tuple(outputs.shape)} and {tuple(targets.shape)}."
        )
    n, k = outputs.shape
    targets = class_labels(targets, k)
    f = outputs.to(common_dtype(outputs))
    others = torch.arange(k - 1, device=f.device).expand(n, -1)
    others = others + (others >= targets[:, None])
    if softmax:
        epsilon, f = softmax_errors(f, targets)
        return epsilon, f.gather(1, others)
    return 1 - f.gather(1, targets[:, None]).squeeze(1), f.gather(1, others)
