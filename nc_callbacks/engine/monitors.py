"""EarlyStopping, ModelCheckpoint and ReduceLROnPlateau on a value that comes at the end of some training epochs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from lightning.pytorch import Trainer

from nc_callbacks.engine.trainer import monitors_of, read_at_train_end

IsNew = Callable[[str, Trainer], bool]


class Monitors:
    """The readers of our log keys, which read them when a training epoch ends, and only where they are new.

    Elsewhere they would raise where no value has come yet, and count an old one as no improvement.
    """

    def __init__(self) -> None:
        self._put_back: list[Callable[[], None]] = []
        self._watched: list[Any] = []
        self._schedules: list[tuple[Any, str, int, IsNew]] = []

    def watch(self, trainer: Trainer, prefix: str, is_new: IsNew) -> None:
        """Take the trainer's readers of keys with this prefix into care.

        Args:
            trainer: The trainer.
            prefix: First part of the log keys.
            is_new: Whether the value of a log key may be read now.
        """
        for reader, monitor in monitors_of(trainer, prefix):
            if any(reader is watched for watched in self._watched):
                continue
            self._watched.append(reader)
            if hasattr(reader, "reduce_on_plateau"):
                self._schedules.append((reader, monitor, reader.frequency, is_new))
            else:
                skips = partial(partial, _skips, partial(is_new, monitor))
                self._put_back.append(read_at_train_end(reader, skips))
        self.hold(trainer)

    def hold(self, trainer: Trainer) -> None:
        """No plateau schedule steps until `let_step` finds a new value; one that counts batches, until there is any."""
        for schedule, monitor, frequency, _ in self._schedules:
            reads_between = schedule.interval != "epoch" and monitor in trainer.callback_metrics
            # The number of the epoch is divided by it, and no number is so large.
            schedule.frequency = frequency if reads_between else sys.maxsize

    def let_step(self, trainer: Trainer) -> None:
        """Let the plateau schedules step whose value is new."""
        for schedule, monitor, frequency, is_new in self._schedules:
            if is_new(monitor, trainer) and monitor in trainer.callback_metrics:
                schedule.frequency = frequency

    def release(self) -> None:
        """Leave all readers as they were."""
        for put_back in self._put_back:
            put_back()
        for schedule, _, frequency, _ in self._schedules:
            schedule.frequency = frequency
        self._put_back, self._watched, self._schedules = [], [], []


def _skips(is_new: Callable[[Trainer], bool], skips: Callable[[Trainer], bool], trainer: Trainer) -> bool:
    return skips(trainer) or not is_new(trainer)
