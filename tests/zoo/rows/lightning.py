"""Lightning's own callbacks beside ours, and its ways of making a trainer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch import callbacks as of_lightning
from lightning.pytorch.tuner import Tuner
from torch import nn

from nc_callbacks import NeuralCollapse, WeightMeanAlignment
from tests.zoo.measure import trainer_of
from tests.zoo.setups import K, Row, Setup, Wrapped, pairs


class Net(nn.Module):
    """A backbone and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(8, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 16), nn.Tanh())
        self.head = nn.Linear(16, K)

    def forward(self, x: Any) -> Any:
        return self.head(self.backbone(x))


class Module(Wrapped):
    """With what Lightning's tuners and finetuning ask for."""

    def __init__(self, rate: float = 0.05, batch_size: int = 12) -> None:
        torch.manual_seed(0)
        super().__init__(Net(), rate)
        self.learning_rate, self.batch_size = rate, batch_size
        self.backbone = self.model.backbone

    def train_dataloader(self) -> Any:
        return pairs(8)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD((p for p in self.parameters() if p.requires_grad), self.learning_rate)


class Finetuned(Module):
    """Trains its classifier alone until the backbone is added."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.model.head.parameters(), self.learning_rate)


class Configured(Module):
    """Brings the callbacks along."""

    def configure_callbacks(self) -> Any:
        self.ours = [NeuralCollapse(), WeightMeanAlignment()]
        return self.ours


def _beside(*make: Callable[[], L.Callback], kind: Any = Module, seen: str = "after fit", **trainer: Any) -> Setup:
    callbacks = [one() for one in make]
    return Setup(kind(), pairs(8), "model.head", callbacks=callbacks, trainer={"max_epochs": 4} | trainer, seen=seen)


def _two_fits() -> Setup:
    def fit(setup: Setup, ours: list[L.Callback], end: L.Callback) -> None:
        trainer_of([*ours, end]).fit(setup.module, setup.loader)
        trainer_of([*ours, end], max_epochs=2).fit(setup.module, setup.loader)

    return Setup(Module(), pairs(8), "model.head", fit=fit)


def _same_trainer() -> Setup:
    def fit(setup: Setup, ours: list[L.Callback], end: L.Callback) -> None:
        trainer = trainer_of([*ours, end])
        trainer.fit(setup.module, setup.loader)
        trainer.fit_loop.max_epochs = 3
        trainer.fit(setup.module, setup.loader)

    return Setup(Module(), pairs(8), "model.head", fit=fit)


def _tuned(tune: Callable[[Tuner, Any], Any]) -> Setup:
    def fit(setup: Setup, ours: list[L.Callback], end: L.Callback) -> None:
        trainer = trainer_of([*ours, end])
        tune(Tuner(trainer), setup.module)
        trainer.fit(setup.module)

    return Setup(Module(), pairs(8), "model.head", fit=fit)


def _batch_size() -> Setup:
    def fit(setup: Setup, ours: list[L.Callback], end: L.Callback) -> None:
        finder = of_lightning.BatchSizeFinder(max_trials=2, init_val=4)
        trainer_of([finder, *ours, end]).fit(setup.module)

    return Setup(Module(), pairs(8), "model.head", fit=fit)


def _configured() -> Setup:
    def fit(setup: Setup, ours: list[L.Callback], end: L.Callback) -> list[L.Callback]:
        trainer_of([end]).fit(setup.module, setup.loader)
        return setup.module.ours

    return Setup(Configured(), pairs(8), "model.head", fit=fit)


CLI = """
seed_everything: 0
trainer:
  accelerator: cpu
  max_epochs: 1
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  default_root_dir: {folder}
  callbacks:
    - class_path: nc_callbacks.NeuralCollapse
    - class_path: nc_callbacks.WeightMeanAlignment
    - class_path: nc_callbacks.{name}
      init_args: {arguments}
"""


def _cli(name: str, arguments: str) -> Setup:
    def fit(setup: Setup, ours: list[L.Callback], end: L.Callback) -> list[L.Callback]:
        from lightning.pytorch.cli import LightningCLI

        folder = Path(tempfile.mkdtemp())
        path = folder / "config.yaml"
        path.write_text(CLI.format(folder=folder, name=name, arguments=arguments.replace("FOLDER", str(folder))))
        cli = LightningCLI(Module, args=["fit", "--config", str(path)], save_config_callback=None)
        setup.module = cli.model
        return [c for c in cli.trainer.callbacks if type(c).__module__.startswith("nc_callbacks")]

    return Setup(Module(), pairs(8), "model.head", fit=fit)


OWN: list[tuple[str, Callable[[], Setup]]] = [
    ("EMAWeightAveraging", partial(_beside, lambda: of_lightning.EMAWeightAveraging(decay=0.8))),
    ("WeightAveraging", partial(_beside, lambda: of_lightning.WeightAveraging())),
    (
        "StochasticWeightAveraging",
        partial(_beside, lambda: of_lightning.StochasticWeightAveraging(0.05, swa_epoch_start=2), seen="epoch"),
    ),
    (
        "BackboneFinetuning",
        partial(_beside, lambda: of_lightning.BackboneFinetuning(2, verbose=False), kind=Finetuned),
    ),
    ("LearningRateFinder", partial(_beside, lambda: of_lightning.LearningRateFinder(num_training_steps=8))),
    ("BatchSizeFinder", _batch_size),
    (
        "ModelPruning",
        partial(
            _beside,
            lambda: of_lightning.ModelPruning("l1_unstructured", amount=0.3, use_lottery_ticket_hypothesis=False),
        ),
    ),
    (
        "GradientAccumulationScheduler",
        partial(_beside, lambda: of_lightning.GradientAccumulationScheduler({0: 2, 2: 1})),
    ),
    ("Tuner.lr_find", partial(_tuned, lambda tuner, module: tuner.lr_find(module, num_training=8))),
    ("Tuner.scale_batch_size", partial(_tuned, lambda tuner, module: tuner.scale_batch_size(module, max_trials=2))),
    ("configure_callbacks", _configured),
    ("two fits, a trainer each", _two_fits),
    ("two fits of one trainer", _same_trainer),
]

COMMANDS = {
    "NeuralCollapse": "{layers: [model.backbone.3], prefix: more}",
    "WeightMeanAlignment": "{every_n_epochs: 1, implicit: full, prefix: more}",
    "QuasiInterpolation": "{outputs: softmax, samples: [0, 1]}",
    "FeatureSpectrum": "{centred: true}",
    "LookRecorder": "{folder: FOLDER/looks}",
    "CentredMeanInit": "{head: model.head, freeze_backbone: true}",
}
"""Callbacks by the arguments that a YAML file gives them."""

ROWS = [
    *(Row("Lightning", name, make) for name, make in OWN),
    *(Row("LightningCLI", name, partial(_cli, name, given), "jsonargparse") for name, given in COMMANDS.items()),
]
