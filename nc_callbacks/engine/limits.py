"""How many batches an epoch takes: the trainer's limits, and the end of streams that have none."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import Trainer

from nc_callbacks.data.loader import OwnLoader, single_loaders
from nc_callbacks.engine.trainer import batches_of_epoch, counted_batches, is_a, place_of
from nc_callbacks.metrics import LogKey


def batch_limit(trainer: Trainer, split: str, loader: Any) -> float:
    """Batches that the trainer's own limits (`limit_train_batches`, `fast_dev_run`, …) allow.

    Args:
        trainer: The trainer.
        split: What follows the prefix in log keys.
        loader: The split's.

    Raises:
        ValueError: The limit is a share of a loader without a length.
    """
    kind = LogKey.at(split).split
    if kind not in ("train", "val", "test"):
        return math.inf
    limit = getattr(trainer, f"limit_{kind}_batches")
    if _is_unlimited(limit):
        return math.inf
    counted = counted_batches(trainer, kind)
    if place_of(split) < len(counted):
        return counted[place_of(split)]
    if isinstance(limit, int):
        return limit
    try:
        longest = max(map(len, single_loaders(loader)))
    except (TypeError, NotImplementedError, ValueError) as error:
        raise ValueError(
            f"Expected limit_{kind}_batches to be 1.0 or a number of batches where a loader has no length, got {limit}."
        ) from error
    return int(longest * limit)


def stream_limit(trainer: Trainer, split: str) -> float | None:
    """Batches that training takes from a stream without a length; None where nothing gives it an end.

    After an epoch these are its batches. Before, `max_steps` bounds them; where `max_epochs` alone ends training, the
    stream has an end, or training would have none.

    Args:
        trainer: The trainer.
        split: What follows the prefix in log keys.
    """
    if split != "train":
        return math.inf
    if taken := batches_of_epoch(trainer):
        return taken
    if trainer.max_steps >= 0:
        return max(1, trainer.max_steps * trainer.accumulate_grad_batches)
    timed = any(is_a(callback, "Timer") for callback in trainer.callbacks)  # type: ignore[attr-defined]
    return None if timed or trainer.max_epochs in (None, -1) else math.inf


def len_of(own: OwnLoader) -> float:
    """Batches of a loader of a look; infinity where that is not known."""
    try:
        return len(own)
    except TypeError:
        return math.inf


def _is_unlimited(limit: int | float | None) -> bool:
    # The integer 1 means one batch, the float 1.0 all of them.
    return limit is None or (isinstance(limit, float) and limit == 1)
