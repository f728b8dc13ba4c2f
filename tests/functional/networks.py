"""Networks whose features obey linear relations, or nearly so, and what they give in any precision."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from nc_callbacks.statistics import ClassMoments, ClassStatistics, Covariance


class Function(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, h: Tensor) -> Tensor:
        if self.name == "softmax":
            return h.softmax(-1)
        if self.name == "L2-normalised":
            return h / h.norm(dim=-1, keepdim=True)
        if self.name == "offset":
            return h + 5
        # Dead, constant and repeated units.
        zero = torch.zeros_like(h[:, :1])
        return torch.cat([zero, zero + 0.5, h[:, 3:], h[:, 3:4]], 1)


def layer(name: str, p: int) -> nn.Module:
    """The last layer before the classifier, of p features."""
    if name == "LayerNorm with weights":
        norm = nn.LayerNorm(p)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        return norm
    return {
        "LayerNorm": nn.LayerNorm(p, elementwise_affine=False),
        "LayerNorm of an offset": nn.Sequential(Function("offset"), nn.LayerNorm(p)),
        "LayerNorm and an offset": nn.Sequential(nn.LayerNorm(p), Function("offset")),
        "BatchNorm without weights": nn.BatchNorm1d(p, affine=False),
        "bottleneck": nn.Sequential(nn.Linear(p, 3), nn.Linear(3, p)),
        "nothing": nn.Identity(),
    }.get(name) or Function(name)


LAYERS = [
    "LayerNorm",
    "LayerNorm with weights",
    "LayerNorm of an offset",
    "LayerNorm and an offset",
    "BatchNorm without weights",
    "softmax",
    "L2-normalised",
    "bottleneck",
    "dead and repeated units",
    "nothing",
]


def network(name: str, p: int) -> nn.Module:
    """In float64 and eval mode, with weights that float32 holds exactly."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, p), nn.GELU(), nn.Linear(p, p), layer(name, p)).double()
    with torch.no_grad():
        model(torch.randn(500, 8, dtype=torch.float64))
    for parameter in model.parameters():
        parameter.data = parameter.data.float().double()
    return model.eval()


def blobs(k: int, n: int, balanced: bool) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(k)
    targets = torch.arange(n) % k
    if not balanced:
        targets[k:] = torch.multinomial(torch.arange(1.0, k + 1), n - k, True, generator=generator)
    centres = 2 * torch.randn(k, 8, generator=generator)
    return centres[targets] + torch.randn(n, 8, generator=generator), targets


def features_of(model: nn.Module, x: Tensor, dtype: torch.dtype) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).to(dtype)(x.to(dtype))


def moments_of(features: Tensor, targets: Tensor, k: int, covariance: Covariance = "pooled") -> ClassMoments:
    statistics = ClassStatistics(k, covariance=covariance)
    statistics.update(features, targets)
    return statistics.compute()
