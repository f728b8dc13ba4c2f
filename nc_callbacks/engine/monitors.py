"""EarlyStopping and ModelCheckpoint on a value that comes at the end of some training epochs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from lightning.pytorch import Trainer

from nc_callbacks.engine.trainer import is_a

_SKIPS = {"EarlyStopping": "_should_skip_check", "ModelCheckpoint": "_should_skip_saving_checkpoint"}
"""The method by which each asks whether to read its value now."""


def read_at_looks(trainer: Trainer, prefix: str, is_new: Callable[[str, Trainer], bool]) -> None:
    """Let the trainer's monitors of our log keys read them when a training epoch ends, and only where they are new.

    Elsewhere they would raise where no value has come yet, and count an old one as no improvement.

    Args:
        trainer: The trainer.
        prefix: First part of the log keys.
        is_new: Whether the value of a log key may be read now.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        monitor = str(getattr(callback, "monitor", None))
        if not monitor.startswith(tuple(f"{prefix}/{split}/" for split in ("train", "val", "test"))):
            continue
        if is_a(callback, "ModelCheckpoint"):
            callback._save_on_train_epoch_end = True
        elif is_a(callback, "EarlyStopping"):
            callback._check_on_train_epoch_end = True
        for kind, skip in _SKIPS.items():
            # One that saves every so many steps reads what there is.
            if is_a(callback, kind) and not _saves_between_epochs(callback) and skip not in vars(callback):
                setattr(callback, skip, partial(_skips, getattr(callback, skip), partial(is_new, monitor)))


def read_as_before(trainer: Trainer) -> None:
    """Undo `read_at_looks`."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for skip in _SKIPS.values():
            if getattr(vars(callback).get(skip), "func", None) is _skips:
                del vars(callback)[skip]


def _saves_between_epochs(callback: Any) -> bool:
    every, interval = getattr(callback, "_every_n_train_steps", 0), getattr(callback, "_train_time_interval", None)
    return every > 0 or interval is not None


def _skips(skips: Callable[[Trainer], bool], is_new: Callable[[Trainer], bool], trainer: Trainer) -> bool:
    return skips(trainer) or not is_new(trainer)
