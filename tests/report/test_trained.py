"""From train.py's own folders to the page."""

import json

import pytest

from nc_callbacks.report import write_report
from nc_callbacks.runs.folder import read
from tests.processes import ROOT, python

pytestmark = pytest.mark.slow

QUICK = ("trainer=cpu", "trainer.max_epochs=2", "model=mlp", *(f"callbacks.{name}.figures=false" for name in (
    "neural_collapse", "weight_mean_alignment", "quasi_interpolation", "feature_spectrum"
)))  # fmt: skip


def train(*arguments):
    run = python(ROOT / "train.py", *arguments, *QUICK)
    assert run.returncode == 0, run.stderr


def test_page_of_a_run(tmp_path):
    train(f"hydra.run.dir={tmp_path}", "callbacks.neural_collapse.layers=[network.backbone.1]")
    (run,) = read(tmp_path)[1]
    metrics = json.loads((tmp_path / "summary.json").read_text())["metrics"]
    assert run.final == pytest.approx(metrics)
    assert all(epochs.tolist() == [1, 2] for epochs, _ in run.curves.values())
    for split in ("train", "val"):
        cosines = run.looks[f"nc/{split}/wm_cosine_per_class"].values
        assert cosines.shape == (2, 10)
        assert cosines[-1].mean() == pytest.approx(metrics[f"nc/{split}/wm_cosine"], abs=1e-6)
        assert run.looks[f"nc/{split}/network.backbone.1/class_mean_cosines"].values.shape == (2, 10, 10)
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "digits · mlp · tanh" in text
    assert f"<b>{metrics['nc/train/wm_cosine']:.3g}</b>" in text


def test_page_of_a_sweep(tmp_path):
    train("-m", f"hydra.sweep.dir={tmp_path}", "model.activation=tanh,relu")
    is_sweep, runs = read(tmp_path)
    assert is_sweep
    assert [run.overrides["model.activation"] for run in runs] == ["tanh", "relu"]
    assert "2 runs over activation" in write_report(tmp_path).read_text(encoding="utf-8")
