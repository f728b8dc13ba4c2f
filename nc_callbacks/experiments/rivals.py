"""Scores of a source that need all features or the source's own outputs, for comparison."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def neighbour_accuracy(
    train: tuple[Float[Tensor, "n p"], Int[Tensor, " n"]],
    test: tuple[Float[Tensor, "m p"], Int[Tensor, " m"]],
    neighbours: int = 5,
) -> float:
    """Test accuracy of the most frequent class among the nearest training samples (the least index of equals).

    Example:
        >>> x, y = torch.tensor([[0.0], [0.1], [1.0], [1.1]]), torch.tensor([0, 0, 1, 1])
        >>> neighbour_accuracy((x, y), (torch.tensor([[0.2], [0.9]]), torch.tensor([0, 1])), neighbours=2)
        1.0
    """
    right = 0
    for features, targets in zip(test[0].split(512), test[1].split(512), strict=True):
        nearest = torch.cdist(features, train[0]).topk(min(neighbours, len(train[0])), largest=False).indices
        right += int((train[1][nearest].mode(1).values == targets).sum())
    return right / len(test[1])


def leep(outputs: Float[Tensor, "n z"], targets: Int[Tensor, " n"]) -> float:
    """Log expected empirical prediction (Nguyen et al. 2020): mean log Σ_z p(y|z) θ_z, θ the source's softmax outputs.

    Example:
        >>> round(leep(torch.tensor([[50.0, 0.0], [0.0, 50.0]]), torch.tensor([1, 0])), 6)
        0.0
    """
    theta = outputs.double().softmax(1)
    joint = torch.zeros(int(targets.max()) + 1, theta.shape[1], dtype=theta.dtype).index_add(0, targets, theta)
    conditional = joint / joint.sum(0).clamp(min=1e-300)
    return float((theta * conditional[targets]).sum(1).log().mean())


def nce(outputs: Float[Tensor, "n z"], targets: Int[Tensor, " n"]) -> float:
    """Negative conditional entropy −H(y|z) of the labels given the source's answers z (Tran et al. 2019), in nats.

    Example:
        >>> nce(torch.eye(2), torch.tensor([1, 0])) == 0
        True
    """
    answers = outputs.argmax(1)
    shape = int(targets.max()) + 1, outputs.shape[1]
    joint = torch.zeros(shape, dtype=torch.float64)
    joint.index_put_((targets, answers), torch.ones(len(targets), dtype=torch.float64), accumulate=True)
    joint /= len(targets)
    return float((torch.special.entr(joint.sum(0)).sum() - torch.special.entr(joint).sum()).clamp(max=0))
