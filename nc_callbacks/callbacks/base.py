"""What all callbacks share: their arguments, when to look, one pass for all, logging, history."""

from __future__ import annotations

import importlib.util
import math
import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from nc_callbacks.callbacks.look import Look
from nc_callbacks.callbacks.observation import Needs, Observation, Source
from nc_callbacks.probe import Pool, named_head, named_module

Split = Literal["train", "val"]
Record = dict[str, Any]

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Measurement:
    """What a callback makes of one layer on one split."""

    numbers: dict[str, float]
    """Logged, and kept in `history`."""
    vectors: dict[str, Tensor]
    """Kept in `history`."""
    matrices: dict[str, Tensor]
    """Kept in `latest`."""


class CollapseCallback(Callback):
    """Base of the callbacks: looks at the model after training epochs, in one pass over the training data for all.

    A look runs the model in eval mode, with the weights standing still, over the training data (and `splits`) through
    a sequential loader of its own, and changes nothing: weights, optimiser state, buffers, random states and
    train/eval flags are afterwards what they were before.

    Args:
        head: Dotted name of the classifier; by default it is found (see `nc_callbacks.probe.find_head`).
        layers: Dotted names of further modules whose input is watched.
        every_n_epochs: Look after every n-th epoch.
        epochs: Look after these epochs instead (the trainer's numbers, from 0), or ``"log"`` for ten a decade. With
            either, the last epoch of `max_epochs` is always looked at.
        splits: ``"train"`` and/or ``"val"``.
        mode: ``"epoch_end"``.
        batch_fn: From a batch to (inputs, targets); see `nc_callbacks.probe.default_batch_fn` for the default.
        forward_fn: From (module, inputs) to outputs; by default the module is called on the inputs.
        feature_cache: Memory a rank may use to keep features, so that what needs the final class means needs no second
            pass: a number of bytes or a string such as ``"512MiB"``.
        figures: Save figures when fit ends: True for ``figures/`` in the trainer's `default_root_dir`, or a folder.
            Another `prefix` than ``nc`` makes a folder in it.
        prefix: First part of the log keys.
        pool: ``"mean"`` averages convolutional inputs of `layers` over their positions; by default they are flattened.
        global_mean: Centre the class means at their mean over ``"classes"`` (Papyan, Han, Seddik) or at the mean over
            ``"samples"`` (weighted by class sizes).

    Attributes:
        latest: Result of the last look: numbers, vectors and matrices by log key, with ``"epoch"`` and ``"step"``.
        history: One dict a look, numbers and vectors by log key; saved in and restored from checkpoints.

    Raises:
        ValueError: An argument is out of its range; in `setup` and before the first epoch, what is wrong with the
            model or the data.
        ModuleNotFoundError: Figures are asked for and matplotlib is not installed.
    """

    def __init__(
        self,
        head: str | None = None,
        layers: Sequence[str] = (),
        every_n_epochs: int = 1,
        epochs: Iterable[int] | Literal["log"] | None = None,
        splits: Sequence[Split] = ("train",),
        mode: Literal["epoch_end"] = "epoch_end",
        batch_fn: Callable[[Any], tuple[Any, Any]] | None = None,
        forward_fn: Callable[[LightningModule, Any], Any] | None = None,
        feature_cache: int | str = "512MiB",
        figures: bool | str | Path = False,
        prefix: str = "nc",
        pool: Pool = None,
        global_mean: Literal["classes", "samples"] = "classes",
    ) -> None:
        if every_n_epochs < 1:
            raise ValueError(f"every_n_epochs must be at least 1, got {every_n_epochs}.")
        if isinstance(epochs, str) and epochs != "log":
            raise ValueError(f'epochs must be a list of epochs or "log", got {epochs!r}.')
        if isinstance(splits, str) or not splits or not set(splits) <= {"train", "val"}:
            raise ValueError(f'splits must be a list of "train" and "val", got {splits!r}.')
        if isinstance(layers, str):
            raise ValueError(f"layers must be a list of module names, got the string {layers!r}: pass [{layers!r}].")
        if mode != "epoch_end":
            raise ValueError(f'mode must be "epoch_end", got {mode!r}.')
        if pool not in (None, "mean"):
            raise ValueError(f'pool must be None or "mean", got {pool!r}.')
        if global_mean not in ("classes", "samples"):
            raise ValueError(f'global_mean must be "classes" or "samples", got {global_mean!r}.')
        if figures and importlib.util.find_spec("matplotlib") is None:
            raise ModuleNotFoundError("figures need matplotlib: pip install matplotlib, or pass figures=False.")
        self.given = Source(head, pool, batch_fn, forward_fn)
        self.source = self.given
        self.layers = tuple(layers)
        self.every_n_epochs = every_n_epochs
        self.epochs: Literal["log"] | frozenset[int] | None
        self.epochs = epochs if epochs is None or epochs == "log" else frozenset(epochs)
        self.splits = tuple(splits)
        self.mode = mode
        self.cache_bytes = parse_bytes(feature_cache)
        self.figures = figures
        self.prefix = prefix
        self.global_mean = global_mean
        self.latest: Record = {}
        self.history: list[Record] = []

    @property
    def head(self) -> str:
        """Dotted name of the classifier; empty until it is found."""
        return self.source.head or ""

    @property
    @abstractmethod
    def needs(self) -> Needs:
        """What this callback needs a pass to gather."""

    @abstractmethod
    def measure(self, observation: Observation) -> Measurement:
        """What this callback makes of one layer on one split."""

    def draw(self, folder: Path) -> None:
        """Save this callback's figures in the folder."""

    @property
    def state_key(self) -> str:
        return self._generate_state_key(
            prefix=self.prefix,
            head=self.given.head,
            layers=self.layers,
            pool=self.given.pool,
            splits=self.splits,
            global_mean=self.global_mean,
        )

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = list(state_dict["history"])
        self.latest = dict(self.history[-1]) if self.history else {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # A model that builds its layers in configure_model has none yet; it is checked when training starts.
        if stage == "fit" and not is_overridden("configure_model", pl_module):
            if self.given.head is not None:
                named_head(pl_module, self.given.head)
            for layer in self.layers:
                named_module(pl_module, layer, "layer")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The values come at the end of the training epoch, so that is when callbacks that monitor them must read them.
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if str(getattr(callback, "monitor", None)).startswith(f"{self.prefix}/"):
                if isinstance(callback, ModelCheckpoint):
                    callback._save_on_train_epoch_end = True
                elif isinstance(callback, EarlyStopping):
                    callback._check_on_train_epoch_end = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if _callbacks(trainer)[0] is self:
            _shared[trainer] = _Shared({})
        # Of a fit that was cut off and is repeated, or of an earlier one.
        self.history = [record for record in self.history if record["epoch"] < trainer.current_epoch]
        # The first of the callbacks that were given the same source tries it for all.
        peers = [c for c in _callbacks(trainer) if c.given == self.given]
        if peers[0] is self:
            look = Look(trainer, pl_module, self.given, reduce(or_, (c.needs for c in peers)))
            head = look.check({"train": trainer.train_dataloader, **_validation_loader(trainer, peers)})
            for peer in peers:
                peer.source = replace(self.given, head=head)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.is_due(trainer):
            return
        observations = _shared_look(trainer, pl_module, self)
        record: Record = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        matrices: Record = {}
        logged: dict[str, float] = {}
        for split in self.splits:
            for layer in (self.head, *self.layers):
                observation = observations[split][layer]
                if not self._is_measurable(observation, trainer):
                    continue
                found = self.measure(observation.of_present_classes())
                if observation.moments.nonfinite:
                    found = replace(found, numbers=dict.fromkeys(found.numbers, math.nan))
                key = f"{self.prefix}/{split}/" + (f"{layer}/" if layer != self.head else "")
                logged |= {key + name: value for name, value in found.numbers.items()}
                record |= {key + name: _to_keep(vector) for name, vector in found.vectors.items()}
                matrices |= {key + name: _to_keep(matrix) for name, matrix in found.matrices.items()}
        record |= logged
        self.history.append(record)
        self.latest = record | matrices
        several_ranks = trainer.world_size > 1
        pl_module.log_dict(logged, on_step=False, on_epoch=True, batch_size=1, sync_dist=several_ranks)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.num_training_batches and trainer.limit_train_batches and trainer.max_epochs:
            raise ValueError(
                f"The training loader is empty, so nothing was trained and {type(self).__name__} measured nothing. "
                "Check the dataset's length, and drop_last=True with fewer samples than one batch."
            )
        _shared.pop(trainer, None)
        if not self.figures or not self.history or not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir, "figures") if self.figures is True else Path(self.figures)
        folder = folder if self.prefix == "nc" else folder / self.prefix
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.draw(folder)
        except Exception as error:
            rank_zero_warn(f"{type(self).__name__} could not draw its figures in {folder}: {error!r}.")

    def is_due(self, trainer: Trainer) -> bool:
        """Whether this callback looks after the current epoch."""
        epoch, last = trainer.current_epoch, trainer.max_epochs
        if self.epochs is None:
            return (epoch + 1) % self.every_n_epochs == 0
        if last is not None and epoch + 1 == last:
            return True
        if self.epochs == "log":
            return epoch + 1 == round(10 ** (round(10 * math.log10(epoch + 1)) / 10))
        return epoch in self.epochs

    def _is_measurable(self, observation: Observation, trainer: Trainer) -> bool:
        """Whether two classes have samples; warns once of classes without, and of features that are not finite."""
        moments, split, epoch = observation.moments, observation.split, trainer.current_epoch
        if moments.nonfinite:
            _warn_once(
                trainer,
                "nonfinite",
                f"{moments.nonfinite} of {int(moments.counts.sum())} {split} samples have NaN or infinite features at "
                f"{observation.layer!r} in epoch {epoch}. The metrics of such an epoch are NaN; training goes on.",
            )
        k, absent = len(moments.counts), (~moments.present).nonzero().squeeze(1).tolist()
        if absent:
            _warn_once(
                trainer,
                f"absent {split}",
                f"No {split} sample has class {', '.join(map(str, absent[:10]))}{', …' if len(absent) > 10 else ''}: "
                f"{len(absent)} of the {k} rows of the classifier {self.head!r} are left out. If that is not the "
                "classifier, pass head=....",
            )
        if measurable := k - len(absent) >= 2:
            return measurable
        message = f"The {split} split has samples of one class only: nothing is measured on it."
        _warn_once(trainer, f"one {split}", message)
        return False


def parse_bytes(size: int | str) -> int:
    """Bytes of a number or a string such as ``"512MiB"`` or ``"2 GB"``.

    Raises:
        ValueError: It is neither.

    Example:
        >>> parse_bytes("1.5KiB")
        1536
    """
    match = re.fullmatch(r"\s*([\d.]+)\s*([a-zA-Z]*)\s*", str(size))
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError(f'feature_cache must be a number of bytes or a string such as "512MiB", got {size!r}.')
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _to_keep(tensor: Tensor) -> Tensor:
    return (tensor.float() if tensor.is_floating_point() else tensor).cpu()


def _validation_loader(trainer: Trainer, callbacks: list[CollapseCallback]) -> dict[str, Any]:
    """The validation loader under ``"val"``, where a callback asks for it."""
    if not any("val" in callback.splits for callback in callbacks):
        return {}
    if trainer.val_dataloaders is None and trainer.enable_validation:
        # Lightning loads them when it first validates, which may come after the first look.
        stage, trainer.state.stage = trainer.state.stage, RunningStage.VALIDATING
        trainer.fit_loop.epoch_loop.val_loop.setup_data()
        trainer.state.stage = stage
    loaders = trainer.val_dataloaders
    if loaders is None:
        raise ValueError(
            'splits has "val", but the trainer has no validation loader. Pass one to fit or define val_dataloader (and '
            'validation_step, and no limit_val_batches=0), or leave "val" out.'
        )
    if isinstance(loaders, list | tuple):
        if len(loaders) != 1:
            raise ValueError(
                f'splits has "val", and the trainer has {len(loaders)} validation loaders; expected one. Leave "val" '
                "out, or validate on one loader."
            )
        loaders = loaders[0]
    return {"val": loaders}


@dataclass
class _Shared:
    """What the callbacks of one trainer share during a fit."""

    looks: dict[Source, tuple[dict[str, dict[str, Observation]], list[CollapseCallback]]]
    """What was found at each source after the epoch, and who has not read it yet."""
    warned: set[str] = field(default_factory=set)
    """What has been warned of."""


_shared: WeakKeyDictionary[Trainer, _Shared] = WeakKeyDictionary()


def _callbacks(trainer: Trainer) -> list[CollapseCallback]:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, CollapseCallback)]


def _warn_once(trainer: Trainer, about: str, message: str) -> None:
    if about not in _shared[trainer].warned:
        _shared[trainer].warned.add(about)
        rank_zero_warn(message)


def _shared_look(
    trainer: Trainer, pl_module: LightningModule, callback: CollapseCallback
) -> dict[str, dict[str, Observation]]:
    """Observations for this callback: the first that asks after an epoch looks for all that are due."""
    looks = _shared[trainer].looks
    if callback.source not in looks:
        peers = [c for c in _callbacks(trainer) if c.source == callback.source and c.is_due(trainer)]
        needs, cache_bytes = reduce(or_, (c.needs for c in peers)), max(c.cache_bytes for c in peers)
        look = Look(trainer, pl_module, callback.source, needs, cache_bytes, callback.head)
        looks[callback.source] = look.run(trainer.train_dataloader, _validation_loader(trainer, peers)), peers
    observations, waiting = looks[callback.source]
    waiting.remove(callback)
    if not waiting:
        # Covariances can be large: they do not stay while training goes on.
        del looks[callback.source]
    return observations
