"""Sweeps, run as a user runs them: on several processes, side by side, on a cluster's launcher, under torchrun."""

import csv
import importlib.util
import json
import os
import subprocess
import sys
import uuid
from contextlib import suppress
from pathlib import Path
from select import select

import pytest
from hydra import compose, initialize_config_dir

from tests.processes import ROOT, python

QUICK = [
    "model=mlp",
    "trainer.max_epochs=2",
    "callbacks=neural_collapse",
    "callbacks.neural_collapse.figures=false",
    "+trainer.enable_checkpointing=false",
]
FAIL = "+callbacks.fail._target_=tests.runs.failing.FailOnRank"


def run(cwd, *arguments, start=(sys.executable,)):
    """Runs the training script, and sees to it that no process of it is left."""
    mark = uuid.uuid4().hex
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "STARTED_BY": mark}
    command = [*start, str(ROOT / "train.py"), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=600)
    # A worker of joblib ends a moment after the process that it works for.
    for number in left_over(mark):
        with suppress(ProcessLookupError), os.fdopen(os.pidfd_open(number)) as process:
            select([process], [], [], 300)
    assert left_over(mark) == {}
    return ended


def left_over(mark):
    """Commands by process, of those started with the mark."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes():
                found[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ")
        except OSError:
            continue
    return found


def rows(folder):
    with open(folder / "sweep.csv", newline="") as file:
        return list(csv.DictReader(file))


def metrics(folder):
    return json.loads((folder / "summary.json").read_text())["metrics"]


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


HYDRA_FILES = [".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml"]
LEFT_BY_ALL = [
    *HYDRA_FILES,
    "data.json",
    "hparams.yaml",
    "looks.npz",
    "metrics.csv",
    "report.html",
    "summary.json",
    "train.log",
]
RUN_FILES = [*LEFT_BY_ALL, "figures/summary.png"]


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


@pytest.mark.slow
def test_torchrun_refuses_a_sweep(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    refused = run(tmp_path, "-m", "trainer=ddp_cpu", *QUICK, "seed=0,1", start=torchrun)
    assert refused.returncode != 0
    assert "Start it with python train.py --multirun" in refused.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_side_by_side(tmp_path):
    if importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher") is None:
        pytest.skip("needs hydra-joblib-launcher")
    sweep = tmp_path / "sweep"
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"hydra.sweep.dir={sweep}"]
    # Each run waits, as it starts to train, for the other one.
    wait = ["+callbacks.wait._target_=tests.runs.failing.WaitForAnother", f"+callbacks.wait.pipe={tmp_path / 'pipe'}"]
    ended = run(tmp_path, "-m", *launcher, "trainer=cpu,ddp_cpu", *QUICK, *wait)
    assert ended.returncode == 0, ended.stderr
    assert [row["status"] for row in rows(sweep)] == ["finished"] * 2
    for number in "01":
        assert files(sweep / number) == sorted(RUN_FILES)


@pytest.mark.parametrize("launcher", ["submitit_slurm", "submitit_local", "joblib"])
def test_launchers_compose(launcher):
    plugin = "joblib" if launcher == "joblib" else "submitit"
    if importlib.util.find_spec(f"hydra_plugins.hydra_{plugin}_launcher") is None:
        pytest.skip(f"needs hydra-{plugin}-launcher")
    with initialize_config_dir(str(ROOT / "nc_callbacks" / "conf"), version_base="1.3"):
        config = compose("train", [f"hydra/launcher={launcher}"], return_hydra_config=True)
    target = {"submitit_slurm": "SlurmLauncher", "submitit_local": "LocalLauncher", "joblib": "JoblibLauncher"}
    assert config.hydra.launcher._target_.endswith(target[launcher])


@pytest.mark.slow
def test_submitit_launches_here(tmp_path):
    if importlib.util.find_spec("hydra_plugins.hydra_submitit_launcher") is None:
        pytest.skip("needs hydra-submitit-launcher")
    sweep = tmp_path / "sweep"
    launcher = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5", f"hydra.sweep.dir={sweep}"]
    ended = run(tmp_path, "-m", *launcher, "trainer=ddp_cpu", *QUICK, "model.activation=tanh,nonsense")
    assert ended.returncode == 1
    assert [row["status"] for row in rows(sweep)] == ["finished", "failed"]
    assert files(sweep / "0") == sorted(RUN_FILES)
    assert list((sweep / ".submitit").rglob("*_log.out"))
