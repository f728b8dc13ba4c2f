"""Lightning's hooks, each handed on to the session in a line."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from nc_callbacks.callbacks.views import Views
from nc_callbacks.engine.observation import Observations
from nc_callbacks.engine.session import Watch, close, session_of
from nc_callbacks.engine.trainer import by_split, makes_layers_later, refuse_strategy
from nc_callbacks.probe.depth import expanded, has_patterns


class SessionHooks(Views):
    """A callback that watches through the session of its trainer."""

    watch: Watch
    given_layers: tuple[str, ...] | str
    """As the user gave them, patterns among them."""
    layers: tuple[str, ...]
    """By name."""

    @abstractmethod
    def make_watch(self) -> Watch:
        """The wishes of this callback."""

    @abstractmethod
    def record(self, trainer: Trainer, pl_module: LightningModule, observations: Observations | None) -> None:
        """Measure, log and keep what a look has found."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Join the session of the trainer, and check what can be checked."""
        refuse_strategy(trainer, type(self).__name__)
        self._find_layers(pl_module, made=not makes_layers_later(pl_module))
        self.watch = self.make_watch()
        session_of(trainer).join(self.watch)
        session_of(trainer).check_names(self.watch, pl_module, fitting=stage == "fit", made=False)

    def _find_layers(self, model: LightningModule, made: bool = True) -> None:
        """Find the layers that are given by patterns, where the model has made its layers."""
        if made and has_patterns(self.given_layers):
            self.layers = expanded(model, self.given_layers)
            if hasattr(self, "watch"):
                self.watch.layers = self.layers

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the layers that patterns name, check them, and see to monitors of these keys."""
        session = session_of(trainer)
        self._find_layers(pl_module)
        session.check_names(self.watch, pl_module, fitting=True, made=True)
        session.monitors.watch(trainer, self.watch.prefix, session.is_new_for(self.watch.prefix))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Try a batch, and find the classifier."""
        session_of(trainer).start_fit(self.watch, trainer, pl_module)
        self.adopt(self.watch, trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Try a batch, in `trainer.validate`."""
        if trainer.state.fn == "validate":
            self._find_layers(pl_module)
            session_of(trainer).start_evaluation(self.watch, trainer, pl_module, "val")
            self.adopt(self.watch, trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Try a batch, in `trainer.test`."""
        self._find_layers(pl_module)
        session_of(trainer).start_evaluation(self.watch, trainer, pl_module, "test")
        self.adopt(self.watch, trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to gather, with ``mode="online"``."""
        session_of(trainer).start_epoch(self.watch, trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Gather from this batch's forward passes, with ``mode="online"``."""
        for _, stream in session_of(trainer).streams_for(self.watch):
            stream.begin_batch()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take what this batch's forward passes gave."""
        for _, stream in session_of(trainer).streams_for(self.watch):
            skipped = outputs is None or outputs == {}
            stream.end_batch("train", batch, trainer.train_dataloader, batch_idx, skipped)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to gather a validation epoch, with ``mode="online"``."""
        for _, stream in session_of(trainer).streams_for(self.watch):
            stream.restart("val")

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Watch what the step gives the model; gather from its forward passes, with ``mode="online"``."""
        session_of(trainer).begin_validation_batch(self.watch, pl_module)
        for _, stream in session_of(trainer).streams_for(self.watch):
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
        """Take what this batch's forward passes gave."""
        session = session_of(trainer)
        session.end_validation_batch(self.watch, pl_module, batch)
        for source, stream in session.streams_for(self.watch):
            split, loader = list(by_split("val", trainer.val_dataloaders).items())[dataloader_idx]
            if session.watches_split(source, split):
                stream.end_batch(split, batch, loader, batch_idx)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look, where a look is due."""
        if self.watch.is_due(trainer):
            self.record(trainer, pl_module, session_of(trainer).observe(self.watch, trainer, pl_module))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look, in `trainer.validate`."""
        if trainer.state.fn == "validate":
            self._evaluate(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look, in `trainer.test`."""
        self._evaluate(trainer, pl_module, "test")

    def _evaluate(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        if self.watch.looks_at(split):
            found = session_of(trainer).observe_evaluation(self.watch, trainer, pl_module, split)
            self.record(trainer, pl_module, found)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the hooks off the model."""
        close(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the hooks off the model, and leave the session."""
        close(trainer)
