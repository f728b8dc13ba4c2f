"""The processes that share data: what they exchange, what they agree on, and how they fail together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    pass

T = TypeVar("T")


class InterruptedPassError(Exception):
    """The process is asked to end."""


class FailedElsewhereError(RuntimeError):
    """Another rank failed."""

    def __init__(self, out_of_memory: bool) -> None:
        super().__init__("another rank ran out of memory" if out_of_memory else "it failed on another rank")
        self.out_of_memory = out_of_memory


class _Vote(IntEnum):
    """State of a rank; all do what the largest says."""

    END = 0
    MORE = 1
    INTERRUPTED = 2
    OUT_OF_MEMORY = 3
    FAILED = 4


@dataclass(frozen=True)
class Ranks:
    """This process among those that have different data.

    Example:
        >>> ranks = Ranks.of_world()
        >>> ranks.size, ranks.max(3), ranks.all_or_none(lambda: "done")
        (1, 3, 'done')
    """

    rank: int
    size: int
    group: Any
    """torch.distributed's group of them; None for all processes."""
    device: torch.device

    @classmethod
    def of_world(cls, device: torch.device | str = "cpu") -> Ranks:
        """All processes where torch.distributed is initialised, else this one alone.

        Args:
            device: Where what they exchange lies.
        """
        several = dist.is_available() and dist.is_initialized()
        rank, size = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
        return cls(rank, size, None, torch.device(device))

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.size == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total, group=self.group)
        return total

    def max(self, value: int) -> int:
        """The largest value of all processes."""
        if self.size == 1:
            return value
        largest = torch.tensor(value, device=self.device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=self.group)
        return int(largest)

    def any(self, here: bool) -> bool:
        """Whether something holds on some process."""
        return bool(self.max(int(here)))

    def vote(self, failure: Exception | None = None, more: bool = False) -> bool:
        """Whether some rank has more to do; where one has failed, all raise.

        Raises:
            Exception: `failure`, or what stands for that of another rank: `InterruptedPassError`,
                `FailedElsewhereError`.
        """
        mine = _vote(failure, more)
        largest = self.max(mine)
        if failure is not None and mine == largest:
            try:
                raise failure
            finally:
                # Its traceback, which knows this frame, would keep itself and all tensors on the way.
                del failure
        if largest == _Vote.INTERRUPTED:
            raise InterruptedPassError
        if largest > _Vote.INTERRUPTED:
            raise FailedElsewhereError(largest == _Vote.OUT_OF_MEMORY)
        return largest == _Vote.MORE

    def all_or_none(self, action: Callable[[], T]) -> T:
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

    def first_text(self, text: str) -> str:
        """The text of the first process that has one; empty where none has."""
        if self.size == 1:
            return text
        texts: list[Any] = [None] * self.size
        dist.all_gather_object(texts, text, group=self.group)
        return next(filter(None, texts), "")


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
