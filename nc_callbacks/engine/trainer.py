"""Facts about a trainer; every touch of Lightning's private names is in this file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from nc_callbacks.data.loader import single_loaders
from nc_callbacks.distributed import Ranks
from nc_callbacks.metrics import LogKey

_PACKAGES = ("lightning", "pytorch_lightning")
"""The same code under two names, whose classes know nothing of each other."""

_SKIPS = {"EarlyStopping": "_should_skip_check", "ModelCheckpoint": "_should_skip_saving_checkpoint"}
"""The method by which each asks whether to read its value now."""

_AT_TRAIN_END = {"EarlyStopping": "_check_on_train_epoch_end", "ModelCheckpoint": "_save_on_train_epoch_end"}
"""The attribute by which each is told to read its value when a training epoch ends."""


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


def makes_layers_later(model: LightningModule) -> bool:
    """Whether the module may make layers after the callbacks are set up."""
    return overrides(model, "configure_model") or overrides(model, "setup")


def ranks_of(trainer: Trainer) -> Ranks:
    """The processes that have different data: with tensor parallelism, several have the same."""
    sampling = getattr(trainer.strategy, "distributed_sampler_kwargs", None) or {}
    rank = sampling.get("rank", trainer.global_rank)
    size = sampling.get("num_replicas", trainer.world_size)
    mesh: Any = getattr(trainer.strategy, "_device_mesh", None)
    shared = size != trainer.world_size and mesh is not None
    return Ranks(rank, size, mesh["data_parallel"].get_group() if shared else None, trainer.strategy.root_device)


def is_sharded(trainer: Trainer) -> bool:
    """Whether a forward pass on one rank waits for the others."""
    return is_a(trainer.strategy, "FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")


def refuse_strategy(trainer: Trainer, who: str) -> None:
    """Refuse a strategy under which the classifier cannot be read.

    Args:
        trainer: The trainer.
        who: Name of the callback.

    Raises:
        ValueError: It is such a strategy.
    """
    if getattr(trainer.strategy, "zero_stage_3", False):
        raise ValueError(
            f"{who} cannot read the classifier under DeepSpeed's ZeRO stage 3, which keeps no whole parameters. Use "
            "stage 2, FSDP, or ModelParallelStrategy."
        )


def runs_in_children(trainer: Trainer) -> bool:
    """Whether the trainer runs in processes that it has spawned or forked, and ends in the one that called it."""
    return is_a(trainer.strategy.launcher, "_MultiProcessingLauncher")


def starts_scripts(trainer: Trainer) -> bool:
    """Whether the trainer starts its further processes with the command line of the first."""
    return is_a(trainer.strategy.launcher, "_SubprocessScriptLauncher")


def on_device(trainer: Trainer, model: LightningModule, raw: Any, place: int) -> Any:
    """A batch as the training step gets it.

    Args:
        trainer: The trainer.
        model: Its LightningModule, whose transfer hooks run.
        raw: As the loader gave it.
        place: Lightning's dataloader_idx.
    """
    batch = trainer.strategy.precision_plugin.convert_input(raw)
    batch = model._on_before_batch_transfer(batch, dataloader_idx=place)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=place)


@contextmanager
def validated_weights(trainer: Trainer, model: LightningModule) -> Iterator[None]:
    """The weights that the trainer validates: with Lightning's WeightAveraging (EMA), the averaged ones."""
    averaging: list[Any] = [callback for callback in trainer.callbacks if is_a(callback, "WeightAveraging")]  # type: ignore[attr-defined]
    for callback in averaging:
        callback.on_validation_epoch_start(trainer, model)
    try:
        yield
    finally:
        for callback in reversed(averaging):
            callback.on_validation_epoch_end(trainer, model)


def counted_batches(trainer: Trainer, kind: str) -> list[float]:
    """Batches that the trainer's limits leave of each loader of a kind, as far as it has counted them."""
    if kind == "train":
        # It does so in fit alone.
        counted = trainer.state.fn == "fit" and trainer.fit_loop._combined_loader is not None
        return [trainer.num_training_batches] if counted else []
    return list(trainer.num_val_batches if kind == "val" else trainer.num_test_batches)


def batches_of_epoch(trainer: Trainer) -> int:
    """Training batches of the epoch that has just ended, or runs; 0 before the first."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready


def by_split(split: str, loaders: Any) -> dict[str, Any]:
    """Evaluation loaders by what follows the prefix in log keys: ``"val"``, or ``"val/dataloader_idx_0"`` and so on."""
    singles = single_loaders(loaders)
    if len(singles) == 1:
        return {split: singles[0]}
    return {LogKey("", split, loader=place).where: single for place, single in enumerate(singles)}


def selects(splits: Collection[str], label: str) -> bool:
    """Whether splits such as ``"val"`` or ``"val/dataloader_idx_0"`` have a loader of that label."""
    return label in splits or LogKey.at(label).split in splits


def place_of(split: str) -> int:
    """Which of several loaders has these log keys: Lightning's dataloader_idx."""
    return LogKey.at(split).loader or 0


def loaders_of_fit(trainer: Trainer, splits: Collection[str]) -> dict[str, Any]:
    """The training loader and, where asked for, the validation loaders; to be called where random numbers are put back.

    Raises:
        ValueError: Validation loaders are asked for, and there is none.
    """
    if all(split == "train" for split in splits):
        return {"train": trainer.train_dataloader}
    loaders = _validation_loaders(trainer) if any(LogKey.at(split).split == "val" for split in splits) else {}
    refuse_unknown(splits, "val", loaders)
    chosen = {label: loader for label, loader in loaders.items() if selects(splits, label)}
    return {"train": trainer.train_dataloader} | chosen


def refuse_unknown(splits: Collection[str], kind: str, loaders: Mapping[str, Any]) -> None:
    """Refuse a loader by number that there is not.

    Raises:
        ValueError: There is not.
    """
    wrong = [split for split in splits if split != kind == LogKey.at(split).split and split not in loaders]
    if wrong:
        raise ValueError(f"splits has {wrong[0]!r}, and the loaders are {', '.join(map(repr, loaders))}.")


def _validation_loaders(trainer: Trainer) -> dict[str, Any]:
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


def evaluation_loaders(
    trainer: Trainer, split: str, splits: Collection[str], warn: Callable[[str], None]
) -> dict[str, Any]:
    """Loaders of `trainer.validate` or `trainer.test`, and the training loader where one is defined.

    To be called where random numbers are put back.

    Args:
        trainer: The trainer.
        split: ``"val"`` or ``"test"``.
        splits: Which of several loaders are asked for.
        warn: Called where the training loader is defined and cannot be made.
    """
    found = by_split(split, trainer.val_dataloaders if split == "val" else trainer.test_dataloaders)
    refuse_unknown(splits, split, found)
    loaders = {label: loader for label, loader in found.items() if selects(splits, label)}
    if trainer.fit_loop._data_source.is_defined():
        try:
            loaders["train"] = trainer.fit_loop._data_source.dataloader()
        except Exception as error:
            # A data module is set up for the stage that runs, and need not have its training data.
            warn(
                f"The training loader could not be made while evaluating ({type(error).__name__}: {error}), so that "
                "what needs the class means of the training data is left out. Make the training data available in "
                f"setup(stage={trainer.state.fn.value!r}) too."  # type: ignore[union-attr]
            )
    return loaders


def monitors_of(trainer: Trainer, prefix: str) -> Iterator[tuple[Any, str]]:
    """Callbacks and plateau schedules that read a log key with this prefix, and the key."""
    schedules = [config for config in trainer.lr_scheduler_configs if config.reduce_on_plateau]
    for reader in (*trainer.callbacks, *schedules):  # type: ignore[attr-defined]
        monitor = str(getattr(reader, "monitor", None))
        if monitor.startswith(tuple(f"{prefix}/{split}/" for split in ("train", "val", "test"))):
            yield reader, monitor


def read_at_train_end(callback: Any, skips: Callable[[Callable[[Trainer], bool]], Callable[[Trainer], bool]]) -> Any:
    """Let an EarlyStopping or a ModelCheckpoint read its value when a training epoch ends.

    Args:
        callback: Of either class, or another one, which is left alone.
        skips: From its own decision whether to skip an epoch to the one that takes its place.

    Returns:
        A function that puts back what was changed.
    """
    before = dict(vars(callback))
    for kind, skip in _SKIPS.items():
        if is_a(callback, kind):
            setattr(callback, _AT_TRAIN_END[kind], True)
            # One that saves every so many steps reads what there is.
            if not _saves_between_epochs(callback):
                setattr(callback, skip, skips(getattr(callback, skip)))

    def put_back() -> None:
        for kind, skip in _SKIPS.items():
            if is_a(callback, kind):
                vars(callback).pop(skip, None)
                vars(callback).update({name: before[name] for name in (_AT_TRAIN_END[kind], skip) if name in before})

    return put_back


def _saves_between_epochs(callback: Any) -> bool:
    every, interval = getattr(callback, "_every_n_train_steps", 0), getattr(callback, "_train_time_interval", None)
    return every > 0 or interval is not None


def state_key(callback: Any, **parts: Any) -> str:
    """The key of a callback's state in checkpoints."""
    return callback._generate_state_key(**parts)


@contextmanager
def rich_bar(bar: Any, description: str, total: float) -> Iterator[Callable[[], None]]:
    """A further line of a RichProgressBar that is shown."""
    task = bar._add_task(total, description)

    def advance() -> None:
        bar.progress.advance(task)
        bar.refresh()

    try:
        yield advance
    finally:
        bar.progress.remove_task(task)
        bar.refresh()


tqdm_bar = Tqdm
"""The bar that TQDMProgressBar draws, which also suits notebooks' plain output."""


def results_of(trainer: Trainer, model: LightningModule) -> tuple[dict[str, Any], str] | None:
    """What `log` has put down, and the first part of its keys; None where this Lightning keeps it in another way."""
    results, hook = getattr(trainer, "_results", None), getattr(model, "_current_fx_name", None)
    return (results, hook) if isinstance(results, dict) and isinstance(hook, str) else None
