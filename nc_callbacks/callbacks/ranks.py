"""The processes that share a trainer's data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """This process among those that have different data."""

    rank: int
    size: int
    group: Any
    """torch.distributed's group of them; None for all processes."""
    device: torch.device

    @classmethod
    def of(cls, trainer: Trainer) -> Ranks:
        """Those of a trainer: with tensor parallelism, several processes have the same data."""
        sampling = getattr(trainer.strategy, "distributed_sampler_kwargs", None) or {}
        rank = sampling.get("rank", trainer.global_rank)
        size = sampling.get("num_replicas", trainer.world_size)
        mesh: Any = getattr(trainer.strategy, "_device_mesh", None)
        shared = size != trainer.world_size and mesh is not None
        return cls(rank, size, mesh["data_parallel"].get_group() if shared else None, trainer.strategy.root_device)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.size == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total, group=self.group)
        return total

    def most(self, value: int) -> int:
        """The largest value of all processes."""
        if self.size == 1:
            return value
        largest = torch.tensor(value, device=self.device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=self.group)
        return int(largest)
