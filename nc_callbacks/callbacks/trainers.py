"""Facts about a trainer: its loaders and limits, and which class a part of it is of, from either Lightning package."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from nc_callbacks.loader import single_loaders

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


def batch_limit(trainer: Trainer, split: str) -> float:
    """Batches that the trainer's own limits (`limit_train_batches`, `fast_dev_run`, …) allow."""

    def unlimited(limit: int | float | None) -> bool:
        # The integer 1 means one batch, the float 1.0 all of them.
        return limit is None or (isinstance(limit, float) and limit == 1)

    kind, _, place = split.partition("/dataloader_idx_")
    if kind == "val":
        allowed = trainer.num_val_batches
        return math.inf if unlimited(trainer.limit_val_batches) else _at(allowed, int(place or 0))
    if kind == "test":
        allowed = trainer.num_test_batches
        return math.inf if unlimited(trainer.limit_test_batches) else _at(allowed, int(place or 0))
    # Outside fit the trainer has not counted the training batches.
    if kind.partition(" ")[0] != "train" or not trainer.fit_loop._combined_loader:
        return math.inf
    whole = unlimited(trainer.limit_train_batches) and not trainer.overfit_batches  # type: ignore[attr-defined]
    return math.inf if whole else trainer.num_training_batches


def _at(counts: list[int | float], place: int) -> float:
    return counts[place] if place < len(counts) else 0


def by_split(split: str, loaders: Any) -> dict[str, Any]:
    """Evaluation loaders by what follows the prefix in log keys: ``"val"``, or ``"val/dataloader_idx_0"`` and so on."""
    singles = single_loaders(loaders)
    if len(singles) == 1:
        return {split: singles[0]}
    return {f"{split}/dataloader_idx_{place}": single for place, single in enumerate(singles)}


def validation_loaders(trainer: Trainer) -> dict[str, Any]:
    """The validation loaders of a fit.

    Raises:
        ValueError: There is none.
    """
    if trainer.val_dataloaders is None and trainer.enable_validation:
        # Lightning loads them when it first validates, which may come after the first look.
        stage = trainer.state.stage
        trainer.state.stage = type(stage)("validate")  # type: ignore[misc]
        trainer.fit_loop.epoch_loop.val_loop.setup_data()
        trainer.state.stage = stage
    if trainer.val_dataloaders is None:
        raise ValueError(
            'splits has "val", but the trainer has no validation loader. Pass one to fit or define val_dataloader (and '
            'validation_step, and no limit_val_batches=0), or leave "val" out.'
        )
    return by_split("val", trainer.val_dataloaders)


def evaluation_loaders(trainer: Trainer, split: str) -> dict[str, Any]:
    """Loaders of `trainer.validate` or `trainer.test`, and the training loader where one is defined.

    Args:
        trainer: The trainer.
        split: ``"val"`` or ``"test"``.
    """
    loaders = by_split(split, trainer.val_dataloaders if split == "val" else trainer.test_dataloaders)
    source = trainer.fit_loop._data_source
    if source.is_module() and source.is_defined():
        # A data module is set up for the stage that runs, and need not have its training data.
        with suppress(Exception):
            loaders["train"] = source.dataloader()
    return loaders
