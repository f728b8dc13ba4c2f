"""What all callbacks share: their arguments, when to look, one pass for all, logging, history."""

from __future__ import annotations

import importlib.util
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from nc_callbacks.engine.look import MakeLoaders
from nc_callbacks.engine.measurement import Measurement, measured
from nc_callbacks.engine.monitors import read_as_before, read_at_looks
from nc_callbacks.engine.online import Online, refuse_compiled
from nc_callbacks.engine.request import Needs, Observation, Source
from nc_callbacks.engine.session import Observations, close, make_look, observations_for, shared
from nc_callbacks.engine.trainer import by_split, evaluation_loaders, overrides, validation_loaders
from nc_callbacks.engine.units import parse_bytes
from nc_callbacks.probe import Pool, named_head, named_module

Split = Literal["train", "val", "test"]
Record = dict[str, Any]


class CollapseCallback(Callback):
    """Base of the callbacks: looks at the model after training epochs, in one pass over the training data for all.

    A look runs the model in eval mode, with the weights standing still, over the training data (and `splits`) through
    a sequential loader of its own, and changes nothing: weights, optimiser state, buffers, random states and
    train/eval flags are afterwards what they were before. In `trainer.validate` and `trainer.test` it looks at
    ``"val"`` and ``"test"``, and at the training data where the module or data module defines its loader (without, what
    needs the class means of the training split is left out).

    Training goes on where a look fails (a loader that raises, memory that runs out also with the feature cache given up
    and with smaller batches): one warning, and nothing is measured.

    Args:
        head: Dotted name of the classifier; by default it is found (see `nc_callbacks.probe.find_head`).
        layers: Dotted names of further modules whose input is watched.
        every_n_epochs: Look after every n-th epoch.
        epochs: Look after these epochs instead (the trainer's numbers, from 0), or ``"log"`` for ten a decade. With
            either, the last epoch of `max_epochs` is always looked at.
        splits: Of ``"train"``, ``"val"`` and (in `trainer.test`) ``"test"``.
        mode: ``"epoch_end"`` for a look after the epoch, or ``"online"`` to gather from the forward passes that
            training and validation make anyway: no pass is added, but the weights move meanwhile, dropout and batch
            statistics are on, and augmentation and the sampler decide what is seen.
        batch_fn: From a batch to (inputs, targets); see `nc_callbacks.probe.default_batch_fn` for the default. Targets
            of None leave a batch out. A look goes through several training loaders one after the other, and `batch_fn`
            gets the batches of each; online it gets what the training step gets.
        forward_fn: From (module, inputs) to outputs; by default the module is called on the inputs.
        feature_cache: Memory a rank may use to keep features, so that what needs the final class means needs no second
            pass: a number of bytes or a string such as ``"512MiB"``.
        figures: Save figures when fit ends: True for ``figures/`` in the trainer's `default_root_dir`, or a folder.
            Another `prefix` than ``nc`` makes a folder in it.
        prefix: First part of the log keys.
        pool: ``"mean"`` averages convolutional inputs of `layers` over their positions; by default they are flattened.
        global_mean: Centre the class means at their mean over ``"classes"`` (Papyan, Han, Seddik) or at the mean over
            ``"samples"`` (weighted by class sizes).
        ignore_index: Samples (or positions of a sequence) with this target are left out, as `torch.nn.CrossEntropyLoss`
            does; None for none.

    Attributes:
        latest: Result of the last look: numbers, vectors and matrices by log key, with ``"epoch"`` and ``"step"``.
        history: One dict a look of a fit, numbers and vectors by log key; saved in and restored from checkpoints.

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
        mode: Literal["epoch_end", "online"] = "epoch_end",
        batch_fn: Callable[[Any], tuple[Any, Any]] | None = None,
        forward_fn: Callable[[LightningModule, Any], Any] | None = None,
        feature_cache: int | str = "512MiB",
        figures: bool | str | Path = False,
        prefix: str = "nc",
        pool: Pool = None,
        global_mean: Literal["classes", "samples"] = "classes",
        ignore_index: int | None = -100,
    ) -> None:
        if every_n_epochs < 1:
            raise ValueError(f"every_n_epochs must be at least 1, got {every_n_epochs}.")
        if isinstance(epochs, str) and epochs != "log":
            raise ValueError(f'epochs must be a list of epochs or "log", got {epochs!r}.')
        if isinstance(splits, str) or not splits or not set(splits) <= {"train", "val", "test"}:
            raise ValueError(f'splits must be a list of "train", "val" and "test", got {splits!r}.')
        if isinstance(layers, str):
            raise ValueError(f"layers must be a list of module names, got the string {layers!r}: pass [{layers!r}].")
        if mode not in ("epoch_end", "online"):
            raise ValueError(f'mode must be "epoch_end" or "online", got {mode!r}.')
        if pool not in (None, "mean"):
            raise ValueError(f'pool must be None or "mean", got {pool!r}.')
        if global_mean not in ("classes", "samples"):
            raise ValueError(f'global_mean must be "classes" or "samples", got {global_mean!r}.')
        if figures and importlib.util.find_spec("matplotlib") is None:
            raise ModuleNotFoundError("figures need matplotlib: pip install matplotlib, or pass figures=False.")
        self.given = Source(head, pool, batch_fn, forward_fn, ignore_index, mode == "online")
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
        self.num_classes: int | None = None

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
        """Save this callback's figures in the folder; by default one of each of its metrics."""
        from nc_callbacks.figures import save_metric_figures

        save_metric_figures(self.history, self.latest, folder, self.prefix)

    # Lightning asks for it at every hook of every batch.
    @cached_property
    def state_key(self) -> str:
        return self._generate_state_key(
            prefix=self.prefix,
            head=self.given.head,
            layers=self.layers,
            pool=self.given.pool,
            splits=self.splits,
            global_mean=self.global_mean,
            mode=self.mode,
        )

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "num_classes": self.num_classes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = list(state_dict["history"])
        self.num_classes = state_dict["num_classes"]
        self.latest = dict(self.history[-1]) if self.history else {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if getattr(trainer.strategy, "zero_stage_3", False):
            raise ValueError(
                f"{type(self).__name__} cannot read the classifier under DeepSpeed's ZeRO stage 3, which keeps no "
                "whole parameters. Use stage 2, FSDP, or ModelParallelStrategy."
            )
        # A model that builds its layers in configure_model has none yet; it is checked when it runs.
        if not overrides(pl_module, "configure_model"):
            names = [*([] if self.given.head is None else [self.given.head]), *self.layers]
            if self.given.head is not None:
                named_head(pl_module, self.given.head)
            for layer in self.layers:
                named_module(pl_module, layer, "layer")
            if self.mode == "online" and stage == "fit":
                refuse_compiled(pl_module, names)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        read_at_looks(trainer, self.prefix, self._is_new)

    def _is_new(self, monitor: str, trainer: Trainer) -> bool:
        """Whether it came in this epoch, or all with our prefix have measured: then the key is of none of them."""
        mine = [callback.latest for callback in _callbacks(trainer) if callback.prefix == self.prefix]
        now = [latest for latest in mine if latest.get("epoch") == trainer.current_epoch and len(latest) > 2]
        return len(now) == len(mine) or any(monitor in latest for latest in now)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Of a fit that was cut off and is repeated, or of an earlier one.
        self.history = [record for record in self.history if record["epoch"] < trainer.current_epoch]
        if self.latest.get("epoch", -1) >= trainer.current_epoch:
            self.latest = {}
        peers = [callback for callback in _callbacks(trainer) if callback.given == self.given]
        if peers[0] is self:
            self._try(trainer, pl_module, peers, lambda: _loaders_of_fit(trainer, peers))
            if self.mode == "online":
                # One that names the head and one that finds it share a stream too.
                sharing = [callback for callback in _callbacks(trainer) if callback.source == self.source]
                look = make_look(trainer, pl_module, self.source, sharing)
                shared(trainer).streams[self.source] = Online(look, shared(trainer).warn_once)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._try_evaluation(trainer, pl_module, "val")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._try_evaluation(trainer, pl_module, "test")

    def _try_evaluation(self, trainer: Trainer, pl_module: LightningModule, split: Split) -> None:
        peers = [c for c in _callbacks(trainer) if c.given == self.given and split in c.splits]
        if peers and peers[0] is self:
            self._try(trainer, pl_module, peers, lambda: evaluation_loaders(trainer, split))

    def _try(
        self, trainer: Trainer, pl_module: LightningModule, peers: list[CollapseCallback], make_loaders: MakeLoaders
    ) -> None:
        """Try what was given to these callbacks on a batch, once for all."""
        look = make_look(trainer, pl_module, self.given, peers)
        look.check(make_loaders)
        for peer in peers:
            peer.source = replace(self.given, head=look.head)
            if peer.history and peer.num_classes not in (None, look.num_classes):
                rank_zero_warn(
                    f"The history of {type(peer).__name__} in the checkpoint is of {peer.num_classes} classes, and "
                    f"{look.head!r} has {look.num_classes}: it starts anew."
                )
                peer.history, peer.latest = [], {}
            peer.num_classes = look.num_classes

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for source, stream in self._streams(trainer):
            if any(c.source == source and c.is_due(trainer) for c in _callbacks(trainer)):
                stream.start()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        for _, stream in self._streams(trainer):
            stream.begin_batch()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for _, stream in self._streams(trainer):
            skipped = outputs is None or outputs == {}
            stream.end_batch("train", batch, trainer.train_dataloader, batch_idx, skipped)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for _, stream in self._streams(trainer):
            stream.restart("val")

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        for _, stream in self._streams(trainer):
            stream.begin_batch()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        for source, stream in self._streams(trainer):
            if any(c.source == source and "val" in c.splits for c in _callbacks(trainer)):
                split, loader = list(by_split("val", trainer.val_dataloaders).items())[dataloader_idx]
                stream.end_batch(split, batch, loader, batch_idx)

    def _streams(self, trainer: Trainer) -> list[tuple[Source, Online]]:
        """What is gathered online, for the first of the callbacks: each stream is served once."""
        streams = shared(trainer).streams
        return list(streams.items()) if streams and _first_callback(trainer) is self else []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.is_due(trainer):
            return

        def find(peers: list[CollapseCallback]) -> Observations:
            if self.mode == "online":
                return shared(trainer).streams[self.source].finish()
            return make_look(trainer, pl_module, self.source, peers).run(lambda: _loaders_of_fit(trainer, peers))

        peers = [c for c in _callbacks(trainer) if c.source == self.source and c.is_due(trainer)]
        observations = observations_for(self, trainer, peers, find)
        if observations:
            self.history.append(self._record(trainer, pl_module, observations))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._evaluate(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluate(trainer, pl_module, "test")

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule, split: Split) -> None:
        """Look at a split in `trainer.validate` or `trainer.test`."""
        if split not in self.splits:
            return
        peers = [c for c in _callbacks(trainer) if c.source == self.source and split in c.splits]
        observations = observations_for(
            self,
            trainer,
            peers,
            lambda peers: make_look(trainer, pl_module, self.source, peers).run(
                lambda: evaluation_loaders(trainer, split)
            ),
        )
        if observations:
            self._record(trainer, pl_module, observations)

    def _record(self, trainer: Trainer, pl_module: LightningModule, observations: Observations) -> Record:
        """Measure, log, and set `latest`; returns what belongs into the history."""
        record: Record = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        matrices: Record = {}
        logged: dict[str, float] = {}
        for label, layers in observations.items():
            split, _, place = label.partition("/")
            if split not in self.splits:
                continue
            for layer in (self.head, *self.layers):
                found = measured(self.measure, layers[layer], self.head, trainer)
                start = f"{self.prefix}/{split}/" + (f"{layer}/" if layer != self.head else "")
                end = f"/{place}" if place else ""
                logged |= {start + name + end: value for name, value in found.numbers.items()}
                record |= {start + name + end: _to_keep(vector) for name, vector in found.vectors.items()}
                matrices |= {start + name + end: _to_keep(matrix) for name, matrix in found.matrices.items()}
        record |= logged
        self.latest = record | matrices
        several_ranks = trainer.world_size > 1
        pl_module.log_dict(
            logged, on_step=False, on_epoch=True, batch_size=1, sync_dist=several_ranks, add_dataloader_idx=False
        )
        return record

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.num_training_batches and trainer.limit_train_batches and trainer.max_epochs:
            raise ValueError(
                f"The training loader is empty, so nothing was trained and {type(self).__name__} measured nothing. "
                "Check the dataset's length, and drop_last=True with fewer samples than one batch."
            )
        if not self.figures or not self.history or not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir, "figures") if self.figures is True else Path(self.figures)
        folder = folder if self.prefix == "nc" else folder / self.prefix
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.draw(folder)
        except Exception as error:
            rank_zero_warn(f"{type(self).__name__} could not draw its figures in {folder}: {error!r}.")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._end(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._end(trainer)

    def _end(self, trainer: Trainer) -> None:
        close(trainer)
        read_as_before(trainer)

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


def _to_keep(tensor: Tensor) -> Tensor:
    return (tensor.float() if tensor.is_floating_point() else tensor).cpu()


def _callbacks(trainer: Trainer) -> list[CollapseCallback]:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, CollapseCallback)]


def _first_callback(trainer: Trainer) -> CollapseCallback:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return next(callback for callback in callbacks if isinstance(callback, CollapseCallback))


def _loaders_of_fit(trainer: Trainer, callbacks: list[CollapseCallback]) -> dict[str, Any]:
    watches_val = any("val" in callback.splits for callback in callbacks)
    return {"train": trainer.train_dataloader} | (validation_loaders(trainer) if watches_val else {})
