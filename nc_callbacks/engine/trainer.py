"""Facts about a trainer: its loaders and limits, and which class a part of it is of, from either Lightning package."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from nc_callbacks.data.loader import single_loaders

_PACKAGES = ("lightning", "pytorch_lightning")
"""The same code under two names, whose classes know nothing of each other."""


def is_a(thing: Any, *names: str) -> bool:
    """Whether a thing is an instance of one of Lightning's classes of these names, from either package."""
    return any(
        parent.__name__ in names and parent.__module__.split(".")[0] in _PACKAGES for parent in type(thing).__mro__
    )


def overrides(model: LightningModule, method: str) -> bool:
    """Whether the module defines the method that LightningModule only declares."""
    declared = next(parent for parent in type(model).__mro__ if parent.__name__ == "LightningModule")
    defined = getattr(model, method, None)
    return defined is not None and getattr(defined, "__func__", defined) is not getattr(declared, method)


def is_sharded(trainer: Trainer) -> bool:
    """Whether a forward pass on one rank waits for the others."""
    return is_a(trainer.strategy, "FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")


def batch_limit(trainer: Trainer, split: str, loader: Any) -> float:
    """Batches that the trainer's own limits (`limit_train_batches`, `fast_dev_run`, …) allow.

    Args:
        trainer: The trainer.
        split: What follows the prefix in log keys.
        loader: The split's.
    """
    kind = split.partition("/")[0]
    if kind in ("val", "test"):
        limit = trainer.limit_val_batches if kind == "val" else trainer.limit_test_batches
        counted = trainer.num_val_batches if kind == "val" else trainer.num_test_batches
        if _is_unlimited(limit):
            return math.inf
        if place_of(split) < len(counted):
            return counted[place_of(split)]
        # The trainer counts them when it first validates.
        return limit if isinstance(limit, int) else int(len(loader) * limit)
    # Outside fit the trainer has not counted the training batches.
    if kind != "train" or trainer.fit_loop._combined_loader is None:
        return math.inf
    return math.inf if _is_unlimited(trainer.limit_train_batches) else trainer.num_training_batches


def _is_unlimited(limit: int | float | None) -> bool:
    # The integer 1 means one batch, the float 1.0 all of them.
    return limit is None or (isinstance(limit, float) and limit == 1)


def by_split(split: str, loaders: Any) -> dict[str, Any]:
    """Evaluation loaders by what follows the prefix in log keys: ``"val"``, or ``"val/dataloader_idx_0"`` and so on."""
    singles = single_loaders(loaders)
    if len(singles) == 1:
        return {split: singles[0]}
    return {f"{split}/dataloader_idx_{place}": single for place, single in enumerate(singles)}


def place_of(split: str) -> int:
    """Which of several loaders has these log keys: Lightning's dataloader_idx."""
    return int(split.partition("/dataloader_idx_")[2] or 0)


def validation_loaders(trainer: Trainer) -> dict[str, Any]:
    """The validation loaders of a fit; to be called where random numbers are put back.

    Raises:
        ValueError: There is none.
    """
    loaders = trainer.val_dataloaders
    if loaders is None and trainer.enable_validation:
        # Lightning loads them when it first validates. Until then they are made on the side, so that what making them
        # draws is drawn when it would be.
        loaders = trainer.fit_loop.epoch_loop.val_loop._data_source.dataloader()
    if loaders is None:
        raise ValueError(
            'splits has "val", but the trainer has no validation loader. Pass one to fit or define val_dataloader (and '
            'validation_step, and no limit_val_batches=0), or leave "val" out.'
        )
    return by_split("val", loaders)


def evaluation_loaders(trainer: Trainer, split: str) -> dict[str, Any]:
    """Loaders of `trainer.validate` or `trainer.test`, and the training loader where one is defined.

    To be called where random numbers are put back.

    Args:
        trainer: The trainer.
        split: ``"val"`` or ``"test"``.
    """
    loaders = by_split(split, trainer.val_dataloaders if split == "val" else trainer.test_dataloaders)
    if trainer.fit_loop._data_source.is_defined():
        # A data module is set up for the stage that runs, and need not have its training data.
        with suppress(Exception):
            loaders["train"] = trainer.fit_loop._data_source.dataloader()
    return loaders
