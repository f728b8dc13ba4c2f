"""Classifiers that are no plain linear layer, and networks that run more than once: from metric learning, spiking."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.setups import K, Row, Setup, Wrapped, pairs


class Embedding(nn.Module):
    """Embeds, and hands the embedding to a classifier."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 16))
        self.head = head

    def forward(self, x: Tensor) -> Any:
        return self.head(self.body(x))


class Normalised(Embedding):
    def forward(self, x: Tensor) -> Any:
        return 16 * self.head(F.normalize(self.body(x)))


class Margin(nn.Module):
    """ArcFace's and CosFace's classifier: scaled cosines, with a margin at the target's in training."""

    def __init__(self, angle: float = 0.0, cosine: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(K, 16))
        self.angle, self.cosine = angle, cosine

    def forward(self, h: Tensor, y: Tensor | None = None) -> Tensor:
        cosines = F.linear(F.normalize(h), F.normalize(self.weight))
        if y is None:
            return 16 * cosines
        moved = torch.cos(torch.acos(cosines.clamp(-0.999, 0.999)) + self.angle) - self.cosine
        return 16 * torch.where(F.one_hot(y, K).bool(), moved, cosines)


class WithMargin(Wrapped):
    """Hands the targets to the classifier in training."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self.model.head(self.model.body(x), y), y)


class WeightInLoss(Wrapped):
    """Metric learning whose classifier is a matrix of the loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.loss = nn.Module()
        self.loss.W = nn.Parameter(torch.randn(16, K))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        cosines = F.normalize(self(batch[0])) @ F.normalize(self.loss.W, dim=0)
        return F.cross_entropy(16 * cosines, batch[1])


class Prototypes(nn.Module):
    """Negative squared distances to a point a class."""

    def __init__(self) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.randn(K, 16))

    def forward(self, h: Tensor) -> Tensor:
        return -torch.cdist(h, self.points).square()


class Experts(nn.Module):
    """A mixture of linear classifiers, weighed by a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(16, 3)
        self.experts = nn.ModuleList(nn.Linear(16, K) for _ in range(3))

    def forward(self, h: Tensor) -> Tensor:
        each = torch.stack([expert(h) for expert in self.experts], 2)
        return (each * self.gate(h).softmax(1)[:, None]).sum(2)


class Spikes(torch.autograd.Function):
    """A step, with a smooth gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] / (1 + 10 * x.abs()) ** 2


class Spiking(nn.Module):
    """Leaky integrate-and-fire neurons, whose membrane potentials are plain attributes.

    Args:
        readout: Whether the classifier reads the mean of the ``"rates"``, or each ``"step"``, whose outputs are summed.
    """

    def __init__(self, readout: str) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 24), nn.Linear(24, K)
        self.readout, self.potential = readout, 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.potential = torch.zeros(len(x), 24, dtype=x.dtype)
        spikes = []
        for _ in range(5):
            self.potential = 0.9 * self.potential + self.body(x)
            fired = Spikes.apply(self.potential - 1)
            self.potential = self.potential * (1 - fired)
            spikes.append(fired)
        if self.readout == "rates":
            return self.head(torch.stack(spikes).mean(0))
        return torch.stack([self.head(fired) for fired in spikes]).sum(0)


def _setup(
    build: Callable[[], nn.Module], head: str = "head", kind: Any = Wrapped, weight: Any = None, **arguments: Any
) -> Setup:
    torch.manual_seed(0)
    weight = {} if weight is None else {"weight": weight}
    return Setup(kind(build()), pairs(8), f"model.{head}", arguments, **weight)


def _none(head: Any) -> tuple[None, None]:
    return None, None


_LEFT_OUT = "is no affine map of its input and so has no weight"

ROWS = [
    Row(
        "metric learning",
        "ArcFace",
        partial(_setup, lambda: Embedding(Margin(angle=0.5)), kind=WithMargin, weight=_none),
        warns=_LEFT_OUT,
    ),
    Row(
        "metric learning",
        "CosFace",
        partial(_setup, lambda: Embedding(Margin(cosine=0.3)), kind=WithMargin, weight=_none),
        warns=_LEFT_OUT,
    ),
    Row(
        "metric learning",
        "NormFace, a linear layer on normalised features",
        partial(_setup, lambda: Normalised(nn.Linear(16, K, bias=False))),
    ),
    Row(
        "metric learning",
        "the weight in the loss",
        partial(_setup, lambda: Embedding(nn.Identity()), "head", WeightInLoss),
        refused="which the forward pass did not use, takes 16 features",
        remark="forward_fn=logits of a module that holds the weight",
    ),
    Row(
        "metric learning", "prototypes", partial(_setup, lambda: Embedding(Prototypes()), weight=_none), warns=_LEFT_OUT
    ),
    Row(
        "other classifiers",
        "weight_norm",
        partial(_setup, lambda: Embedding(nn.utils.parametrizations.weight_norm(nn.Linear(16, K)))),
    ),
    Row(
        "other classifiers",
        "spectral_norm",
        partial(_setup, lambda: Embedding(nn.utils.parametrizations.spectral_norm(nn.Linear(16, K)))),
    ),
    Row(
        "other classifiers",
        "a mixture of experts",
        partial(_setup, lambda: Embedding(Experts()), weight=_none),
        warns=_LEFT_OUT,
    ),
    Row(
        "other classifiers",
        "an MLP head",
        partial(_setup, lambda: Embedding(nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, K))), "head.2"),
    ),
    Row("spiking", "firing rates", partial(_setup, lambda: Spiking("rates"))),
    Row(
        "spiking",
        "a readout at each step",
        partial(_setup, lambda: Spiking("step")),
        refused="a network of several layers, and what no layer in it gives alone",
        remark="forward_fn=a classifier that runs once, on the rates",
    ),
]
