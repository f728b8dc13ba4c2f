"""Sweeps, run as a user runs them: on several processes, gone on with, under torchrun."""

import csv
import json
import os
import sys

import pytest

from tests.processes import ROOT, python
from tests.runs.sweeping import LEFT_BY_ALL, QUICK, RUN_FILES, files, rows, run

FAIL = "+callbacks.fail._target_=tests.runs.failing.FailOnRank"


def metrics(folder):
    return json.loads((folder / "summary.json").read_text())["metrics"]


@pytest.fixture(scope="module")
def processes_sweep(tmp_path_factory):
    """Two jobs of two processes; the first fails on its second process."""
    folder = tmp_path_factory.mktemp("processes")
    given = ["-m", "trainer=ddp_cpu", *QUICK, FAIL, "+callbacks.fail.rank=1,9"]
    return folder, given, run(folder, *given, f"hydra.sweep.dir={folder / 'sweep'}")


@pytest.mark.slow
def test_a_failing_process_ends_its_job_and_no_other(processes_sweep):
    folder, _, ended = processes_sweep
    assert ended.returncode == 1
    assert [path.name for path in folder.iterdir()] == ["sweep"]
    folder /= "sweep"
    first, second = rows(folder)
    assert (first["subfolder"], first["status"]) == ("0", "failed")
    assert first["error"] == "ArithmeticError: rank 1 gave up, as it was told"
    assert (second["subfolder"], second["status"], second["error"]) == ("1", "finished", "")
    assert second["callbacks.fail.rank"] == "9"
    assert "in on_train_epoch_end" in json.loads((folder / "0" / "error.json").read_text())["traceback"]
    assert "rank 1 gave up" in ended.stdout
    assert "rank 1 gave up" in (folder / "0" / "train.log").read_text()


@pytest.mark.slow
def test_each_job_ran_once_in_its_folder(processes_sweep):
    folder = processes_sweep[0] / "sweep"
    assert files(folder / "1") == sorted(RUN_FILES)
    assert set(files(folder / "0")) <= {*LEFT_BY_ALL, "error.json"}
    assert sorted(path.name for path in folder.iterdir()) == ["0", "1", "multirun.yaml", "report.html", "sweep.csv"]
    printed = processes_sweep[2].stdout
    assert printed.count("Run folder:") == printed.count("Sweep folder:") == 1
    with open(folder / "1" / "metrics.csv") as file:
        looks = [row for row in csv.DictReader(file) if row["nc/train/nc1"]]
    assert [row["epoch"] for row in looks] == ["0", "1"]


@pytest.mark.slow
def test_a_job_of_a_sweep_is_the_same_alone_and_under_torchrun(processes_sweep, tmp_path):
    swept = metrics(processes_sweep[0] / "sweep" / "1")
    alone = run(tmp_path, "trainer=ddp_cpu", *QUICK, f"hydra.run.dir={tmp_path / 'alone'}")
    assert alone.returncode == 0, alone.stderr
    assert files(tmp_path / "alone") == sorted(RUN_FILES)
    assert metrics(tmp_path / "alone") == pytest.approx(swept, rel=1e-6)
    # The folder's time must not differ between the processes.
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    under = run(tmp_path, "trainer=ddp_cpu", *QUICK, start=torchrun)
    assert under.returncode == 0, under.stderr
    (folder,) = (tmp_path / "runs").glob("*/*")
    assert files(folder) == sorted(RUN_FILES)
    assert metrics(folder) == pytest.approx(swept, rel=1e-6)


@pytest.mark.slow
def test_resume(processes_sweep):
    folder, given, _ = processes_sweep
    folder /= "sweep"
    again = [*given, f"hydra.sweep.dir={folder}"]
    refused = run(folder, *again)
    assert refused.returncode == 1
    assert "go on with it with resume=true" in refused.stderr
    times = {
        path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name in ("metrics.csv", "summary.json")
    }
    (folder / "0" / "left").mkdir()
    (folder / "0" / "left" / "behind.txt").touch()
    resumed = run(folder, *again, "resume=true")
    assert resumed.returncode == 1
    assert f"skipped: {folder / '1'}" in resumed.stdout
    assert not (folder / "0" / "left").exists()
    assert (folder / "1" / "summary.json").stat().st_mtime_ns == times[folder / "1" / "summary.json"]
    assert (folder / "1" / "metrics.csv").stat().st_mtime_ns == times[folder / "1" / "metrics.csv"]
    assert [row["status"] for row in rows(folder)] == ["failed", "finished"]
    assert "resume" not in rows(folder)[0]


def test_resume_is_for_sweeps(tmp_path):
    refused = python(ROOT / "train.py", *QUICK, "trainer=cpu", "resume=true", folder=tmp_path)
    assert refused.returncode == 1
    assert "expected --multirun" in refused.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rank", ["0", "1"])
def test_torchrun_refuses_a_sweep(rank, tmp_path):
    # What a process finds that torchrun has started.
    given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "tests"}
    script = [ROOT / "train.py", "-m", "trainer=ddp_cpu", *QUICK, "seed=0,1"]
    refused = python(*script, folder=tmp_path, environment=os.environ | given)
    assert refused.returncode == 1
    assert "Start it with python train.py --multirun" in refused.stderr
    assert list(tmp_path.iterdir()) == []
