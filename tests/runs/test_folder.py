"""What is read of a run's and a sweep's folder."""

import json
import math

import numpy as np
import pytest

from nc_callbacks.runs.folder import read, read_looks, read_metrics, varying
from tests.report.common import curves, make_failed_run, make_run, make_sweep


def test_run(tmp_path):
    folder = make_run(tmp_path / "run", ("model.activation=tanh", "+trainer.fast=a=b", "~callbacks"))
    is_sweep, (run,) = read(folder)
    assert not is_sweep
    assert (run.name, run.status, run.epochs, run.seconds) == ("run", "finished", 30, 75.5)
    assert run.overrides == {"model.activation": "tanh", "trainer.fast": "a=b"}
    assert run.config["data"] == {"name": "digits"}
    assert "activation: tanh" in run.config_text
    assert run.versions == {"python": "3.11.0", "torch": "2.9.0"}
    epochs, values = run.curves["nc/val/nc1"]
    assert epochs.tolist() == list(range(1, 31))
    np.testing.assert_allclose(values, curves()["nc/val/nc1"], rtol=1e-6)
    assert run.final["nc/train/wm_cosine"] == pytest.approx(0.91)
    assert run.looks["nc/train/class_mean_cosines"].values.shape == (3, 4, 4)


def test_last_value_of_an_epoch_counts(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step,a,b\n0,1,1.5,\n0,2,2.5,\n1,3,,nan\n1,4,3.5,\n4,9,inf,7\n")
    found = read_metrics(path)
    assert found["a"][0].tolist() == [1, 2, 5]
    assert found["a"][1].tolist() == [2.5, 3.5, math.inf]
    assert found["b"][0].tolist() == [2, 5]
    assert math.isnan(found["b"][1][0])


def test_what_is_missing_stays_empty(tmp_path):
    (run,) = read(make_failed_run(tmp_path / "run", ("seed=1",)))[1]
    assert (run.status, run.curves, run.looks, run.final, run.seconds) == ("unfinished", {}, {}, {}, None)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "summary.json").write_text(json.dumps({"metrics": {"nc/train/nc1": None}, "epochs": 3}))
    (run,) = read(tmp_path / "other")[1]
    assert run.status == "finished"
    assert math.isnan(run.final["nc/train/nc1"])


def test_sweep(tmp_path):
    is_sweep, runs = read(make_sweep(tmp_path))
    assert is_sweep
    assert [run.name for run in runs] == ["0", "1", "2", "3", "10"]
    assert [run.status for run in runs] == ["finished"] * 4 + ["failed"]
    assert runs[-1].error == "ValueError: no such activation"
    assert varying(runs) == ["model.activation", "seed"]
    assert varying(runs[:1]) == []


def test_sweep_without_its_table(tmp_path):
    make_sweep(tmp_path)
    (tmp_path / "sweep.csv").unlink()
    assert read(tmp_path)[1][-1].status == "unfinished"


@pytest.mark.parametrize("place", ["", "nowhere"])
def test_neither_run_nor_sweep(tmp_path, place):
    with pytest.raises(FileNotFoundError, match=r"is no run and no sweep: expected a folder with one of summary\.json"):
        read(tmp_path / place)


@pytest.mark.parametrize("name", ["summary.json", "metrics.csv", "looks.npz", ".hydra/config.yaml"])
def test_broken_file_is_named(tmp_path, name):
    folder = make_run(tmp_path / "run")
    (folder / name).write_text("{: broken, [")
    with pytest.raises(ValueError, match=name.rsplit("/", 1)[-1]):
        read(folder)


def test_pickle_is_not_read(tmp_path):
    np.savez(tmp_path / "looks.npz", **{"nc/train/x": np.array([{}], dtype=object)})
    with pytest.raises(ValueError, match=r"looks\.npz"):
        read_looks(tmp_path / "looks.npz")
