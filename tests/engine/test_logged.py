"""Many numbers logged at once are what `log_dict` would have logged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from nc_callbacks import NeuralCollapse, WeightMeanAlignment
from nc_callbacks.engine.logged import Logged, log_numbers
from tests.callbacks.common import Classifier, loader, trainer


class Logs(L.Callback):
    """Logs numbers of its own at the end of each epoch."""

    def __init__(self, plainly: bool) -> None:
        self.plainly = plainly
        self.seen: list[dict[str, float]] = []
        self.kinds: set[str] = set()

    def _log(self, fit: L.Trainer, model: L.LightningModule, numbers: dict[str, float]) -> None:
        if self.plainly:
            model.log_dict(numbers, on_step=False, on_epoch=True, batch_size=1, add_dataloader_idx=False)
        else:
            log_numbers(fit, model, numbers)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        e = trainer.current_epoch
        # A key that a second callback logs too, with another value, and one of some epochs only.
        self._log(trainer, pl_module, {"a": 1 / 3 + e, "b": float("nan"), "shared": 1.0 + e})
        self._log(trainer, pl_module, {"c": 2.0**-30, "shared": 2.0 + e} | ({"some": 7.0} if e % 2 else {}))
        self.kinds |= {type(value).__name__ for value in trainer._results.values()}

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seen.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._log(trainer, pl_module, {"val_a": 0.25, "val_b": 0.5})


def seen(plainly: bool, folder: Any, **settings: Any) -> tuple[Logs, list[dict[str, float]], str]:
    logs, rows = Logs(plainly), CSVLogger(folder, name=str(plainly))
    torch.manual_seed(0)
    fit = trainer(logs, max_epochs=4, logger=rows, **settings)
    fit.fit(Classifier(), loader(0), loader(1))
    fit.validate(Classifier(), loader(1), verbose=False)
    return logs, [*logs.seen, {k: float(v) for k, v in fit.callback_metrics.items()}], str(rows.log_dir)


def test_the_same_for_monitors_and_loggers(tmp_path: Any) -> None:
    plain, expected, plain_folder = seen(True, tmp_path)
    ours, found, folder = seen(False, tmp_path)
    assert "Logged" in ours.kinds - plain.kinds
    assert expected[2]["shared"] == 2.5
    assert str(found) == str(expected)
    text = [Path(place, "metrics.csv").read_text() for place in (plain_folder, folder)]
    assert text[0] == text[1]


def test_a_module_with_a_log_of_its_own_is_asked(tmp_path: Any) -> None:
    class Prefixed(Classifier):
        def log(self, name: str, *args: Any, **kwargs: Any) -> None:
            super().log(f"mine/{name}", *args, **kwargs)

    fit = trainer(Logs(plainly=False), max_epochs=1)
    fit.fit(Prefixed(), loader(0))
    assert {"mine/a", "mine/b", "mine/c", "mine/shared"} <= fit.callback_metrics.keys()


def test_monitors_read_every_look(tmp_path: Any) -> None:
    best = ModelCheckpoint(tmp_path, monitor="nc/train/nc2_etf", mode="min", save_top_k=-1, filename="{epoch}")
    stops = EarlyStopping("nc/train/wm_cosine", mode="max", patience=5)
    looks, alignment = NeuralCollapse(), WeightMeanAlignment()
    fit = trainer(looks, alignment, best, stops, max_epochs=3, enable_checkpointing=True)
    fit.fit(Classifier(), loader(0))
    values = [record["nc/train/nc2_etf"] for record in looks.history]
    assert sorted(float(v) for v in best.best_k_models.values()) == pytest.approx(sorted(values))
    assert float(stops.best_score) == pytest.approx(max(r["nc/train/wm_cosine"] for r in alignment.history))
    # Both log the accuracy.
    assert float(fit.callback_metrics["nc/train/accuracy"]) == pytest.approx(looks.latest["nc/train/accuracy"])


def test_nothing_is_left_of_an_epoch_that_was_reset() -> None:
    number = Logged(meta=None)
    assert number.has_reset
    number.set(torch.tensor(2.0))
    number.forward(torch.tensor(4.0), 3)
    assert number.compute() == 3.5
    number.reset()
    assert number.has_reset
    assert number.compute() is None
