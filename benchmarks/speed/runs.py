"""A run of `train.py` with all callbacks beside one without, and what it draws at its end, by CPU time.

`python benchmarks/run.py --only runs`
"""

from __future__ import annotations

import io
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import hydra
import lightning as L
from omegaconf import DictConfig, OmegaConf

from nc_callbacks.experiments.train import train
from speed.looks import ratio_row
from speed.measure import Options, Row, threads_of

EPOCHS = 20


class Epochs(L.Callback):
    """Notes the CPU time that the epochs of the last fit took, and when they had ended."""

    taken = ended = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        type(self).taken = -time.process_time()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        type(self).taken += time.process_time()
        type(self).ended = _with_children()


def rows(options: Options) -> Iterator[Row]:
    if options.device.type != "cpu":
        return
    pairs = 1 if options.quick else 5
    with threads_of(1):
        _run("default", 1)
        turns = [(_run("default", EPOCHS), _run("none", EPOCHS)) for _ in range(pairs)]
        ours, limit = (list(column) for column in zip(*turns, strict=True))
        what = f"{EPOCHS} epochs of train.py, digits, cnn, figures off"
        yield ratio_row("training, default callbacks / callbacks=none", what, ours, limit, 1.45)
        _run("default", EPOCHS, "summary")
        drawn = _with_children() - Epochs.ended
        detail = "after the last epoch, with child processes"
        yield Row("figures and page of a default run", f"{EPOCHS} epochs, digits, cnn", drawn, "s", 1.5, detail)


def _run(callbacks: str, epochs: int, figures: str = "none") -> float:
    """Seconds of CPU time that the epochs took."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        train(_config(callbacks, epochs, figures, folder), folder)
    return Epochs.taken


def _config(callbacks: str, epochs: int, figures: str, folder: str) -> DictConfig:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    overrides = [f"callbacks={callbacks}", f"figures={figures}", f"trainer.max_epochs={epochs}"]
    overrides += ["+trainer.enable_progress_bar=false", f"folder={folder}"]
    with hydra.initialize_config_module("nc_callbacks.conf", version_base="1.3"):
        config = hydra.compose("train", overrides)
    OmegaConf.update(config, "callbacks.epochs", {"_target_": "speed.runs.Epochs"}, force_add=True)
    OmegaConf.update(config, "data.root", str(Path(folder, "data")))
    return config


def _with_children() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
