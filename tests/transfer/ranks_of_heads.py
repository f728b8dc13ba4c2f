"""A head, a scale and a ranking, fitted by one process or by several."""

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nc_callbacks import CentredMeanHead, rank_sources
from nc_callbacks.transfer.scores import LARGER

K = 4


def samples() -> tuple[torch.Tensor, torch.Tensor]:
    """97 samples, which neither two nor three ranks share evenly; the last class has but one."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(97) % (K - 1)
    targets[50] = K - 1
    return 1 + torch.randn(97, 6, generator=generator) + 2 * torch.eye(6)[targets], targets


def find() -> dict[str, object]:
    x, y = samples()
    loader = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)
    head = CentredMeanHead.from_loader(nn.Identity(), loader, K, scale="fit")
    streamed, whitened = CentredMeanHead(None, K), CentredMeanHead(None, K, whiten=True)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if world == 1 or rank > 0:  # the first of several ranks has no sample
        for part in torch.arange(97)[max(rank - 1, 0) :: max(world - 1, 1)].split(10):
            for one in (streamed, whitened):
                one.update(x[part], y[part])
    streamed.finalize()
    whitened.finalize()
    half = torch.arange(97) % 2 == 0
    scores = rank_sources(
        {"identity": nn.Identity(), "tanh": nn.Tanh()}, loader, K, DataLoader(TensorDataset(x[half], y[half]), 8)
    )
    return {
        "weight": head.weight,
        "counts": head.counts,
        "scale": head.scale,
        "streamed": streamed.weight,
        "whitened": torch.cat([whitened.weight, whitened.bias[:, None]], 1),
        "scores": torch.tensor([[getattr(score, name) for name in LARGER] for score in scores]),
    }


class FailsOn(nn.Module):
    """Fails on one rank, in its second batch."""

    def __init__(self, rank):
        super().__init__()
        self.rank, self.calls = rank, 0

    def forward(self, x):
        self.calls += 1
        if self.calls == 2 and dist.get_rank() == self.rank:
            raise RuntimeError(f"bad on rank {self.rank}")
        return x


class FailsWhenRead(TensorDataset):
    """Fails on one rank."""

    def __getitem__(self, index):
        if dist.get_rank() == 1:
            raise OSError("unreadable on rank 1")
        return super().__getitem__(index)


def absent_on_first():
    """A backbone that one rank cannot make."""
    if dist.get_rank() == 0:
        raise FileNotFoundError("absent on rank 0")
    return nn.Identity()


def rank_with_failures():
    """Names, accuracies and errors where backbones fail on one rank each, then what a loader does that fails on one."""
    x, y = samples()
    loader = DataLoader(TensorDataset(x, y), batch_size=10)
    backbones = {"a": FailsOn(0), "b": FailsOn(1), "good": nn.Identity(), "absent": absent_on_first, "tanh": nn.Tanh()}
    scores = rank_sources(backbones, loader, K)
    try:
        rank_sources({"good": nn.Identity()}, DataLoader(FailsWhenRead(x, y), batch_size=10), K)
    except (OSError, RuntimeError) as error:
        raised = str(error)
    return [(score.name, str(score.cm_accuracy), score.error) for score in scores], raised


def ignoring():
    """A weight and a ranking where a quarter of the targets is to be ignored."""
    x, y = samples()
    y = y.where(torch.arange(97) % 4 > 0, -100)
    loader = DataLoader(TensorDataset(x, y), batch_size=10)
    (score,) = rank_sources({"good": nn.Identity()}, loader, K, loader, ignore_index=-100)
    return CentredMeanHead.from_loader(nn.Identity(), loader, K, ignore_index=-100).means, score.cm_accuracy, score.nc1
