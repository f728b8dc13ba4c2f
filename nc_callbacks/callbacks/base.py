"""The base of the callbacks: arguments, schedule, logging, history."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from nc_callbacks.callbacks.arguments import (
    BatchFn,
    Epochs,
    ForwardFn,
    GlobalMean,
    Mode,
    Split,
    check_arguments,
    spelt_right,
)
from nc_callbacks.callbacks.hooks import SessionHooks
from nc_callbacks.callbacks.measurement import Measurement, keyed, measured, to_keep
from nc_callbacks.callbacks.results import Record
from nc_callbacks.callbacks.schedule import Schedule
from nc_callbacks.data.naming import name_of_data
from nc_callbacks.engine.logged import log_numbers
from nc_callbacks.engine.observation import Observation, Observations
from nc_callbacks.engine.request import Needs, Source, parse_bytes
from nc_callbacks.engine.session import Watch, session_of
from nc_callbacks.engine.trainer import selects, state_key
from nc_callbacks.metrics import LogKey
from nc_callbacks.probe import Pool
from nc_callbacks.probe.depth import has_patterns


class CollapseCallback(SessionHooks):
    """Base of the callbacks: looks at the model after training epochs, in one pass over the training data for all.

    A look runs the model in eval mode, with the weights standing still, over the training data (and `splits`) through
    a sequential loader of its own, and changes nothing of model, optimiser, data and random numbers. In
    `trainer.validate` and `trainer.test` it looks at ``"val"`` and ``"test"``, and at the training data where the
    module or data module defines its loader (without, what needs the class means of training is left out).

    Training goes on where a look fails (a loader that raises, memory that runs out also with the feature cache given up
    and with smaller batches): one warning, and nothing is measured.

    Args:
        head: Dotted name of the classifier; by default it is found (see `nc_callbacks.probe.find_head`).
        layers: Dotted names of further modules whose input is watched, or patterns such as ``"encoder.layer.*"``;
            alone, ``"blocks"`` for a model's residual or transformer blocks, ``"all"`` for its modules with a weight;
            those by patterns are averaged over positions of maps and sequences.
        every_n_epochs: Look after every n-th epoch.
        epochs: Look after these epochs instead (the trainer's numbers, from 0), or ``"log"`` for ten per decade. With
            either, the last epoch of `max_epochs` is always looked at.
        splits: Of ``"train"``, ``"val"`` and (in `trainer.test`) ``"test"``; of several loaders, some by number, such
            as ``"val/dataloader_idx_0"``, where another one has labels of its own.
        mode: ``"epoch_end"`` for a look after the epoch, or ``"online"`` to gather from the forward passes that
            training and validation make anyway: no pass is added, but the weights move meanwhile, dropout and batch
            statistics are on, and augmentation and the sampler decide what is seen.
        batch_fn: From a batch to (inputs, targets); see `nc_callbacks.probe.default_batch_fn` for the default. Targets
            of None leave a batch out. A look goes through several training loaders one after the other, and `batch_fn`
            gets the batches of each; online it gets what the training step gets.
        forward_fn: From (module, inputs) to outputs; by default the module is called on the inputs.
        feature_cache: Memory that a rank may use to keep features, so that what needs the final class means needs no
            second pass: a number of bytes or a string such as ``"64MiB"``. One budget for all callbacks of a trainer:
            the smallest that one of them gives counts; None for no opinion, and 512 MiB where none has one.
        figures: Save figures when fit ends: True for ``figures/`` in the trainer's `default_root_dir`, or a folder.
            Another `prefix` than ``nc`` makes a folder in it.
        prefix: First part of the log keys.
        pool: ``"mean"`` averages convolutional inputs of `layers` over their positions; by default they are flattened.
        global_mean: Centre the class means at their mean over ``"classes"`` (Papyan, Han, Seddik) or at the mean over
            ``"samples"`` (weighted by class sizes).
        ignore_index: Samples (or positions of a sequence) with this target are left out, as `torch.nn.CrossEntropyLoss`
            does; None for none.
        verify: Say in one warning what the first look has changed of model, data and random numbers.
        max_features: Project the features of layers with more than these, at random and the same way each time, so that
            memory and time are bounded. Distances are kept within a few percent (√(2/max_features) of their squares);
            what they do not give is left out at such a layer, with what needs W (see docs/depth.md).

    Attributes:
        latest: Result of the last look: numbers, vectors and matrices by log key, with ``"epoch"`` and ``"step"``.
        history: One dict per look of a fit, numbers and vectors by log key; saved in and restored from checkpoints.

    Raises:
        TypeError: There is no such argument; names the nearest.
        ValueError: An argument is out of its range; in `setup` and before the first epoch, what is wrong with the
            model or the data, or another callback that would log different values under the same keys.
        ModuleNotFoundError: Figures are asked for and matplotlib is not installed.
    """

    names: ClassVar[frozenset[str]] = frozenset()
    """Metrics that another kind of callback logs under the same keys, with the same values where the source is."""

    on_bar: ClassVar[frozenset[str]] = frozenset()
    """Metrics of the training split that the trainer's progress bar shows."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = spelt_right(cls.__init__)  # type: ignore[method-assign]

    def __init__(
        self,
        head: str | None = None,
        layers: Sequence[str] | str = (),
        every_n_epochs: int = 1,
        epochs: Epochs = None,
        splits: Sequence[Split | str] = ("train",),
        mode: Mode = "epoch_end",
        batch_fn: BatchFn | None = None,
        forward_fn: ForwardFn | None = None,
        feature_cache: int | str | None = None,
        figures: bool | str | Path = False,
        prefix: str = "nc",
        pool: Pool = None,
        global_mean: GlobalMean = "classes",
        ignore_index: int | None = -100,
        verify: bool = False,
        max_features: int | None = None,
    ) -> None:
        check_arguments(layers, every_n_epochs, epochs, splits, mode, figures, pool, global_mean, prefix, max_features)
        self.given_layers = layers if isinstance(layers, str) else tuple(layers)
        self.layers: tuple[str, ...] = () if has_patterns(layers) else tuple(layers)
        self.splits, self.mode = tuple(splits), mode
        self.schedule = Schedule.of(every_n_epochs, epochs)
        self.cache_bytes = None if feature_cache is None else parse_bytes(feature_cache)
        self.figures, self.prefix, self.global_mean = figures, prefix, global_mean
        self.given = Source(head, pool, batch_fn, forward_fn, ignore_index, mode == "online", max_features)
        self.verify = verify
        self.start_results()

    @property
    @abstractmethod
    def needs(self) -> Needs:
        """Needs of this callback."""

    @abstractmethod
    def measure(self, observation: Observation) -> Measurement:
        """Measurement of one layer on one split."""

    def through_depth(self, layers: dict[str, Measurement]) -> dict[str, float]:
        """Numbers of all layers together: the classifier's input has the name ``""``, the others are in order."""
        return {}

    @property
    def settings(self) -> tuple[Any, ...]:
        """Options that change the values, beside the source and the layers."""
        return (self.global_mean,)

    def draw(self, folder: Path, formats: Sequence[str] = ("png",)) -> None:
        """Save this callback's figures in the folder; by default one of each of its metrics."""
        from nc_callbacks.figures import save_metric_figures

        save_metric_figures(self.history, self.latest, folder, self.prefix, formats)

    # Lightning asks for it at every hook of every batch.
    @cached_property
    def state_key(self) -> str:
        """Of this callback's state in checkpoints: what it watches, and how."""
        return state_key(
            self,
            prefix=self.prefix,
            head=self.given.head,
            layers=self.given_layers,
            pool=self.given.pool,
            splits=self.splits,
            global_mean=self.global_mean,
            mode=self.mode,
            **({} if self.given.max_features is None else {"max_features": self.given.max_features}),
        )

    def make_watch(self) -> Watch:
        """What the session of a trainer knows of this callback."""
        return Watch(
            name=type(self).__name__,
            given=self.given,
            layers=self.layers,
            splits=self.splits,
            prefix=self.prefix,
            ask=self._ask,
            is_due=self.is_due,
            cache_bytes=self.cache_bytes,
            names=self.names,
            settings=self.settings,
            verify=self.verify,
        )

    def is_due(self, trainer: Trainer) -> bool:
        """Whether this callback looks after the current epoch."""
        return self.schedule.is_due(trainer)

    def _ask(self) -> Needs:
        needs = self.needs
        averaged = self.given.pool is None and has_patterns(self.given_layers)
        layers = {name: replace(needs_of, averaged=averaged) for name, needs_of in needs.layers.items()}
        return replace(needs, layers=layers)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget looks that a resumed fit makes again."""
        self.forget_from(trainer.current_epoch)
        super().on_train_start(trainer, pl_module)

    def record(self, trainer: Trainer, pl_module: LightningModule, observations: Observations | None) -> None:
        """Log what a look has found, and keep it."""
        if not observations:
            return
        record: Record = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        matrices: Record = {}
        logged: dict[str, float] = {}
        by_data: dict[LogKey, dict[str, Measurement]] = {}
        for place, found in self._measurements(trainer, observations):
            logged |= keyed(place, found.numbers)
            record |= keyed(place, {name: to_keep(vector) for name, vector in found.vectors.items()})
            matrices |= keyed(place, {name: to_keep(matrix) for name, matrix in found.matrices.items()})
            by_data.setdefault(replace(place, layer=""), {})[place.layer] = found
        for place, layers in by_data.items():
            logged |= keyed(place, self.through_depth(layers))
        record |= logged
        self._latest = record | matrices
        on_bar = {str(LogKey(name, "train", prefix=self.prefix)) for name in self.on_bar}
        log_numbers(trainer, pl_module, logged, on_bar)
        if trainer.state.fn == "fit":
            self._history.append(record)
        if logged:
            session_of(trainer).note(self.watch, list(logged), trainer)

    def _measurements(self, trainer: Trainer, observations: Observations) -> Iterator[tuple[LogKey, Measurement]]:
        """By place: a log key without the metric's name."""
        notices, head = session_of(trainer).notices, self.watch.source.head or ""
        for label, layers in observations.items():
            for layer in dict.fromkeys((head, *self.layers)) if selects(self.splits, label) else ():
                place = replace(LogKey.at(label, prefix=self.prefix), layer="" if layer == head else layer)
                yield place, measured(self.measure, layers[layer], head, trainer, notices)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the figures; an empty training loader is an error."""
        if not trainer.num_training_batches and trainer.limit_train_batches and trainer.max_epochs:
            raise ValueError(
                f"The training loader is empty, so nothing was trained and {type(self).__name__} measured nothing. "
                "Check the dataset's length, and drop_last=True with fewer samples than one batch."
            )
        if self.figures and self._history and trainer.is_global_zero:
            self._draw(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Draw the figures of a fit that was broken off, too."""
        super().on_exception(trainer, pl_module, exception)
        # Also of a fit that was broken off.
        if trainer.state.fn == "fit" and self.figures and self._history and trainer.is_global_zero:
            self._draw(trainer)

    def _draw(self, trainer: Trainer) -> None:
        folder = Path(trainer.default_root_dir, "figures") if self.figures is True else Path(str(self.figures))
        folder = folder if self.prefix == "nc" else folder / self.prefix
        try:
            from nc_callbacks.figures.titles import of_data

            folder.mkdir(parents=True, exist_ok=True)
            with of_data(name_of_data(trainer.datamodule, trainer.train_dataloader)):  # type: ignore[attr-defined]
                self.draw(folder)
        except Exception as error:
            rank_zero_warn(f"{type(self).__name__} could not draw its figures in {folder}: {error!r}.")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Hand the results to the process that started this one."""
        super().teardown(trainer, pl_module, stage)
        self.send_results(trainer)
