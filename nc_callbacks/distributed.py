"""The processes that share a trainer's data, and how they fail together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

T = TypeVar("T")


class InterruptedPassError(Exception):
    """The process is asked to end."""


class FailedElsewhereError(RuntimeError):
    """Another rank failed."""

    def __init__(self, out_of_memory: bool) -> None:
        super().__init__("another rank ran out of memory" if out_of_memory else "it failed on another rank")
        self.out_of_memory = out_of_memory


class _Vote(IntEnum):
    """What a rank says of itself; the largest is done by all."""

    END = 0
    MORE = 1
    INTERRUPTED = 2
    OUT_OF_MEMORY = 3
    FAILED = 4


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

    def vote(self, failure: Exception | None = None, more: bool = False) -> bool:
        """Whether some rank has more to do; where one has failed, all raise.

        Raises:
            Exception: `failure`, or what stands for that of another rank: `InterruptedPassError`,
                `FailedElsewhereError`.
        """
        mine = _vote(failure, more)
        most = self.most(mine)
        if failure is not None and mine == most:
            raise failure
        if most == _Vote.INTERRUPTED:
            raise InterruptedPassError
        if most > _Vote.INTERRUPTED:
            raise FailedElsewhereError(most == _Vote.OUT_OF_MEMORY)
        return most == _Vote.MORE

    def together(self, action: Callable[[], T]) -> T:
        """Do what may fail on one rank, and then fails on all: none is left waiting.

        What it asks of the others itself it does on all ranks, or fails before.
        """
        try:
            done = action()
        except Exception as error:
            self.vote(error)
            raise
        self.vote()
        return done


def _vote(failure: Exception | None, more: bool) -> _Vote:
    if failure is None:
        return _Vote.MORE if more else _Vote.END
    if isinstance(failure, InterruptedPassError):
        return _Vote.INTERRUPTED
    return _Vote.OUT_OF_MEMORY if is_out_of_memory(failure) else _Vote.FAILED


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, here or on another rank."""
    if isinstance(error, FailedElsewhereError):
        return error.out_of_memory
    # On the CPU torch raises a RuntimeError.
    told = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return told or isinstance(error, torch.OutOfMemoryError | MemoryError)
