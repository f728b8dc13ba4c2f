"""`experiment=early_stop`: the run ends where the rule says, and is the same training until then."""

import csv

import pytest

from nc_callbacks.experiments.train import train
from tests.experiments.test_train import composed

SMALL = (
    "experiment=early_stop",
    "model=mlp",
    "model.activation=relu",
    "trainer=cpu",
    "trainer.max_epochs=40",
    "scheduler.milestones=[20,30]",
    "figures=none",
)


def curve(folder, key):
    with open(folder / "metrics.csv") as file:
        return [float(row[key]) for row in csv.DictReader(file) if row.get(key)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_training_stops_where_nc1_stops_falling(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(composed(*SMALL, "callbacks.early_stopping.patience=1000"), whole)
    train(composed(*SMALL), stopped)
    nc1, accuracy = curve(whole, "nc/train/nc1"), curve(whole, "val/accuracy")
    epochs = len(curve(stopped, "nc/train/nc1"))
    assert len(nc1) == 40
    # The rule by hand: the first five looks in a row that are not below the best by more than 0.01.
    best, waited, expected = float("inf"), 0, len(nc1)
    for epoch, value in enumerate(nc1, start=1):
        best, waited = (value, 0) if value < best - 0.01 else (best, waited + 1)
        if waited == 5:
            expected = epoch
            break
    assert epochs == expected
    # Until then it is the same training.
    assert curve(stopped, "nc/train/nc1") == pytest.approx(nc1[:epochs], rel=1e-4)
    assert curve(stopped, "val/accuracy") == pytest.approx(accuracy[:epochs], abs=1e-6)
