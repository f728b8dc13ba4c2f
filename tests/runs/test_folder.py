"""What is read of a run's and a sweep's folder."""

import json
import math

import numpy as np
import pytest

from nc_callbacks.report.run import varying
from nc_callbacks.runs.folder import read, read_looks, read_metrics
from nc_callbacks.runs.page import write_report
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


def test_runs_of_nested_subfolders(tmp_path):
    """As of hydra.sweep.subdir=${model.activation}/${seed}."""
    for activation in ("tanh", "relu"):
        for seed in (0, 2, 10):
            make_run(tmp_path / activation / str(seed), (f"model.activation={activation}", f"seed={seed}"))
    (tmp_path / ".submitit" / "1" / ".hydra").mkdir(parents=True)
    (tmp_path / "tanh" / "0" / "checkpoints" / ".hydra").mkdir(parents=True)
    is_sweep, runs = read(tmp_path)
    assert is_sweep
    assert [run.name for run in runs] == ["relu/0", "relu/2", "relu/10", "tanh/0", "tanh/2", "tanh/10"]
    assert varying(runs) == ["model.activation", "seed"]
    write_report(tmp_path / "tanh" / "2")
    assert "href='tanh/2/report.html'" in write_report(tmp_path).read_text(encoding="utf-8")


def test_linked_runs_and_circles(tmp_path):
    make_run(tmp_path / "elsewhere" / "0")
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "linked").symlink_to(tmp_path / "elsewhere" / "0")
    (tmp_path / "sweep" / "circle").symlink_to(tmp_path / "sweep")
    assert [run.name for run in read(tmp_path / "sweep")[1]] == ["linked"]


def test_own_record_counts_more_than_the_table(tmp_path):
    make_sweep(tmp_path)
    (tmp_path / "10" / "error.json").write_text('{"error": "KeyError: 1"}')
    (tmp_path / "sweep.csv").write_text("subfolder,status,error\n0,failed,x\n10,failed,old\n")
    runs = read(tmp_path)[1]
    assert [(run.status, run.error) for run in runs[::4]] == [("finished", ""), ("failed", "KeyError: 1")]


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
