"""The experiment that compares heads from moments with trained ones."""

import csv

import numpy as np
import pytest
import torch
from omegaconf import DictConfig

from nc_callbacks import CentredMeanHead
from nc_callbacks.experiments import heads
from nc_callbacks.experiments.heads import Training, calibration_error, compare, means_over_seeds, summary
from nc_callbacks.experiments.logistic import logistic_logits
from nc_callbacks.experiments.transfer_noise import METHODS, WHITENED, make_head
from tests.experiments.test_transfer import experiment
from tests.figures.common import picture
from tests.transfer.test_head import K, data

CELL = {"data": "digits", "activation": "relu", "variance": 0.1, "samples": 100}


def sets():
    (x, y), (x1, y1), (test, targets) = data(0), data(1), data(2)
    return (torch.stack([x, x1]), torch.stack([y, y1]), torch.stack([test, test])), targets


def test_each_method_has_a_row_a_seed_with_its_own_accuracy():
    own, targets = sets()
    rows, curves = compare(own, targets, K, Training(30, 64, 0.01, 1.0))
    by = {(row["method"], row["seed"]): row for row in rows}
    assert {method for method, _ in by} == {*METHODS, *WHITENED, "logistic"}
    for seed in (0, 1):
        head = CentredMeanHead(None, K, whiten=True)
        head.update(own[0][seed], own[1][seed])
        head.finalize()
        expected = (head(own[2][seed]).argmax(1) == targets).float().mean()
        assert by["whitened", seed]["accuracy"] == pytest.approx(float(expected))
        # Training starts there.
        starts = [
            row["accuracy"]
            for row in curves
            if (row["method"], row["seed"], row["step"]) == ("whitened start", seed, 0)
        ]
        assert starts == pytest.approx([float(expected)])
        answers = logistic_logits((own[0][seed], own[1][seed]), own[2][seed], K, seed=seed).argmax(1)
        assert by["logistic", seed]["accuracy"] == pytest.approx(float((answers == targets).float().mean()))
        best = max(by[method, seed]["accuracy"] for method in ("LWM", "WFS", "WICM", "logistic"))
        for method in ("WICM", "whitened start"):
            curve = [(r["step"], r["accuracy"]) for r in curves if (r["method"], r["seed"]) == (method, seed)]
            reached = [step for step, value in curve if value >= 0.99 * best]
            assert by[method, seed]["steps"] == (reached[0] if reached else "")


def test_calibration_error_by_hand():
    generator = np.random.default_rng(0)
    logits, targets = generator.normal(size=(1, 400, 4)) * 2, generator.integers(0, 4, 400)
    chances = np.exp(logits[0]) / np.exp(logits[0]).sum(1, keepdims=True)
    confidence, right = chances.max(1), chances.argmax(1) == targets
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence >= low) & (confidence < low + 1 / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    found = calibration_error(torch.from_numpy(logits), torch.from_numpy(targets))
    assert found.item() == pytest.approx(expected, rel=1e-6)


def rows_of(accuracies, steps):
    return [
        CELL | {"method": m, "seed": s, "accuracy": a, "ece": 0.1, "seconds": 1.0, "steps": steps.get(m, "")}
        for m, of in accuracies.items()
        for s, a in enumerate(of)
    ]


def test_tables():
    accuracies = {"CM": [0.5, 0.6], "WICM": [0.80, 0.90], "whitened": [0.845, 0.849], "whitened start": [0.8, 0.85]}
    cells = means_over_seeds(rows_of(accuracies, {"WICM": 8, "whitened start": 4}))
    by = {row["method"]: row for row in cells}
    assert by["WICM"]["accuracy"] == pytest.approx(0.85)
    assert by["WICM"]["accuracy_std"] == pytest.approx(0.05 * 2**0.5)
    assert (by["WICM"]["steps"], by["CM"]["steps"]) == (8, "")
    found = summary(cells)
    assert found["cells"] == found["whitened within 0.5 points of the best trained head"] == 1
    assert found["mean gap, points"] == pytest.approx(-0.3)
    assert found["mean gap of CM, points"] == pytest.approx(-30)
    assert found["whitened start in at most half of WICM's steps"] == 1
    slower = summary(means_over_seeds(rows_of(accuracies, {"WICM": 8, "whitened start": 5})))
    assert slower["whitened start in at most half of WICM's steps"] == 0


def test_make_head_whitens():
    x, y = data()
    start = make_head("trainable", x, y, K, 7.0, whiten=True)
    assert [name for name, _ in start.named_parameters()] == ["weight", "bias"]
    assert float(start.scale) == 1


def test_wrong_settings_are_refused_before_training(tmp_path):
    settings = {
        "datasets": [{"name": "digits", "epochs": 1}], "activations": ["tanh"], "samples": [9], "variances": [0.0],
        "source_samples": 9, "test_samples": 9, "seeds": 2, "steps": 1,
        "batch_size": 9, "learning_rate": 0.1, "scale": 1,
    }  # fmt: skip
    for wrong in ({"seeds": 1}, {"steps": 0}, {"datasets": []}, {"samples": []}):
        with pytest.raises(ValueError, match="Expected seeds ≥ 2, steps ≥ 1 and at least one data set"):
            heads.run(DictConfig({}), tmp_path, **settings | wrong)


@pytest.mark.slow
def test_experiment_on_digits(tmp_path):
    printed = experiment(
        tmp_path,
        "experiment=heads",
        "task.datasets=[{name: digits, epochs: 5}]",
        "task.samples=[200]",
        "task.variances=[0,0.2]",
        "task.steps=50",
        "task.seeds=2",
    )
    with open(tmp_path / "cells.csv") as file:
        cells = list(csv.DictReader(file))
    assert len(cells) == 2 * 2 * 7
    accuracy = {(row["activation"], row["variance"], row["method"]): float(row["accuracy"]) for row in cells}
    assert all(accuracy["relu", v, "whitened"] > accuracy["relu", v, "CM"] + 0.05 for v in ("0", "0.2"))
    for figure in ("heads.png", "starts.png"):
        assert picture(tmp_path / figure).shape[1] > 500
    assert "mean gap of CM, points" in printed
