"""A classifier that is a simplex ETF from the start and stays one, and the loss that goes with it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

_STEPS, _STEPS_OF_MANY, _MANY = 1000, 300, 200
"""Steps of the descent; fewer where classes are more than 200."""


def rows_apart(num_classes: int, num_features: int, seed: int = 0) -> Float[Tensor, "k p"]:
    """k unit vectors in p dimensions as far apart as can be: a simplex ETF where k ≤ p + 1.

    A simplex ETF has cosines of −1/(k−1), turned by a random orthogonal matrix. Where k > p + 1 there is none, and the
    largest cosine is made as low as can be (the arrangement to which trained classifiers collapse then, Jiang et al.
    2023): from random rows, descent on the soft maximum of all cosines, which hardens as it goes.

    Args:
        num_classes: k.
        num_features: p.
        seed: Of the random matrix.

    Raises:
        ValueError: There are fewer than two classes or no features.

    Example:
        >>> rows = rows_apart(4, 10)
        >>> (rows @ rows.T)[0].round(decimals=4)
        tensor([ 1.0000, -0.3333, -0.3333, -0.3333])
    """
    k, p = num_classes, num_features
    if k < 2 or p < 1:
        raise ValueError(f"Expected at least 2 classes and 1 feature, got {k} and {p}.")
    # Where the generator is, whatever the default device.
    with torch.device("cpu"):
        rows = _rows_apart(k, p, torch.Generator().manual_seed(seed))
    return rows.to(torch.empty(0).device)


def _rows_apart(k: int, p: int, generator: torch.Generator) -> Float[Tensor, "k p"]:
    if k <= p + 1:
        # The complement of 1, as columns: k rows of one length and one angle.
        basis = torch.linalg.qr(torch.cat([torch.ones(1, k), torch.eye(k)[1:]]).double().T).Q[:, 1:]
        turn = torch.linalg.qr(torch.randn(p, k - 1, generator=generator, dtype=torch.float64)).Q
        return F.normalize(basis @ turn.T).float()
    rows = F.normalize(torch.randn(k, p, generator=generator, dtype=torch.float64))
    steps = _STEPS if k <= _MANY else _STEPS_OF_MANY
    for step in range(steps):
        done = step / steps
        cosines = (rows @ rows.T).fill_diagonal_(-torch.inf)
        push = (4 * 250**done * (cosines - cosines.max())).exp() @ rows
        push -= (push * rows).sum(1, keepdim=True) * rows
        rows = F.normalize(rows - 0.3 * (1 - done) ** 2 * push / push.norm(dim=1).max().clamp(min=1e-300))
    return rows.float()


class SimplexETFHead(nn.Module):
    """A fixed classifier whose rows are a simplex ETF, on features of length 1 (Zhu et al. 2021; Yang et al. 2022).

    Outputs are cosines of the features and the rows. Nothing of it is trained: `DotRegression`, or cross-entropy with a
    `scale` above 1, pulls the features of each class to its row. Rare classes then keep directions of their own, where
    a trained classifier lets them fall together. The inner layer ``rows`` is the classifier that callbacks find.

    Args:
        num_features: p.
        num_classes: k; where k > p + 1 there is no simplex ETF, and rows as far apart as can be take its place.
        seed: Of the random rotation.
        scale: Length of the features that reach the rows.

    Raises:
        ValueError: There are fewer than two classes or no features.

    Shape:
        (n, p) → (n, k)

    Example:
        >>> head = SimplexETFHead(8, 3)
        >>> head(5 * head.rows.weight)[0].round(decimals=4)
        tensor([ 1.0000, -0.5000, -0.5000])
        >>> any(parameter.requires_grad for parameter in head.parameters())
        False
    """

    def __init__(self, num_features: int, num_classes: int, seed: int = 0, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.rows = nn.Linear(num_features, num_classes, bias=False).requires_grad_(False)
        self.rows.weight.data.copy_(rows_apart(num_classes, num_features, seed))

    def forward(self, features: Float[Tensor, "n p"]) -> Float[Tensor, "n k"]:
        """Logits (n, k): scaled cosines of features (n, p) and rows."""
        return self.rows(self.scale * F.normalize(features))


class DotRegression(nn.Module):
    """½ (f_{i,y_i} − 1)², mean over samples (Yang et al. 2022): the dot-regression loss of features and fixed rows.

    With outputs w_cᵀh, both of length 1, only the row of a sample's own class pulls; none pushes, so that rare classes
    are not pushed together by frequent ones.

    Shape:
        outputs (n, k), targets (n,) → scalar

    Example:
        >>> DotRegression()(torch.tensor([[0.5, 0.1], [0.0, 1.0]]), torch.tensor([0, 1]))
        tensor(0.0625)
    """

    def forward(self, outputs: Float[Tensor, "n k"], targets: Int[Tensor, " n"]) -> Float[Tensor, ""]:
        """Scalar loss of outputs (n, k) and class indices (n,)."""
        return (outputs.gather(1, targets[:, None]).squeeze(1) - 1).square().mean() / 2
