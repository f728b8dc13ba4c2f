"""After which epochs a callback looks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from lightning.pytorch import Trainer


@dataclass(frozen=True)
class Schedule:
    """Every n-th epoch, or chosen ones and the last.

    Example:
        >>> [epoch for epoch in range(30) if Schedule.of(1, "log").holds(epoch, last=None)][:12]
        [0, 1, 2, 3, 4, 5, 7, 9, 12, 15, 19, 24]
    """

    every_n_epochs: int
    epochs: Literal["log"] | frozenset[int] | None

    @classmethod
    def of(cls, every_n_epochs: int, epochs: Iterable[int] | Literal["log"] | None) -> Schedule:
        """From a callback's arguments."""
        chosen = epochs if epochs is None or isinstance(epochs, str) else frozenset(epochs)
        return cls(every_n_epochs, chosen)

    def is_due(self, trainer: Trainer) -> bool:
        """Whether there is a look after the trainer's current epoch."""
        last = None if trainer.max_epochs is None else trainer.max_epochs - 1
        return self.holds(trainer.current_epoch, last)

    def holds(self, epoch: int, last: int | None) -> bool:
        """Whether there is a look after an epoch, counted from 0."""
        if self.epochs is None:
            return (epoch + 1) % self.every_n_epochs == 0
        if epoch == last:
            return True
        if isinstance(self.epochs, str):
            return epoch + 1 == round(10 ** (round(10 * math.log10(epoch + 1)) / 10))
        return epoch in self.epochs
