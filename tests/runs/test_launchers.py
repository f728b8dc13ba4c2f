"""Sweeps on Hydra's launchers: jobs side by side, and as on a cluster."""

import importlib.util
import sys

import pytest
from hydra import compose, initialize_config_dir

from tests.processes import ROOT
from tests.runs.sweeping import QUICK, RUN_FILES, files, rows, run


@pytest.mark.slow
def test_side_by_side(tmp_path):
    if importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher") is None:
        pytest.skip("needs hydra-joblib-launcher")
    sweep = tmp_path / "sweep"
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"hydra.sweep.dir={sweep}"]
    # Each run waits, as it starts to train, for the other one.
    wait = ["+callbacks.wait._target_=tests.runs.failing.WaitForAnother", f"+callbacks.wait.pipe={tmp_path / 'pipe'}"]
    jobs = ["trainer=cpu", "seed=0,1", *QUICK, "trainer.max_epochs=1"]
    ended = run(tmp_path, "-m", *launcher, *jobs, *wait)
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
    # A process of its own is started for one device, too.
    jobs = ["trainer=ddp_cpu", "trainer.devices=1", *QUICK, "data.samples=null,-1"]
    # submitit knows a job's process by the number of what it has started.
    ended = run(tmp_path, "-m", *launcher, *jobs, start=[sys.executable])
    assert ended.returncode == 1
    assert [row["status"] for row in rows(sweep)] == ["finished", "failed"]
    assert "samples must be" in rows(sweep)[1]["error"]
    assert files(sweep / "0") == sorted(RUN_FILES)
    assert list((sweep / ".submitit").rglob("*_log.out"))
