"""What a job of a sweep leaves in its folder, however it ends."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from nc_callbacks.experiments.jobs import is_finished, job
from nc_callbacks.experiments.sweep import read_runs

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Runs a task as the only job of a sweep in tmp_path."""

    def run(task, *overrides, mode="MULTIRUN"):
        folder = tmp_path / "0"
        (folder / ".hydra").mkdir(parents=True, exist_ok=True)
        (folder / ".hydra" / "overrides.yaml").write_text("[seed=0]")
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("train", [f"hydra.mode={mode}", *overrides], return_hydra_config=True)
        with open_dict(config):
            config.hydra.runtime.output_dir = str(folder)
        monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
        HydraConfig.instance().set_config(config)
        job(task)(config)
        return folder

    return run


def fails(config):
    raise ValueError("no such thing")


def test_a_task_without_a_summary_is_finished_when_it_ends(start, tmp_path):
    folder = start(lambda config: None)
    assert is_finished(folder)
    (run,) = read_runs(tmp_path)
    assert (run.status, run.metrics) == ("finished", {})


def test_a_task_that_fails_leaves_its_error(start):
    folder = start(fails)
    assert not is_finished(folder)
    left = json.loads((folder / "error.json").read_text())
    assert left["error"] == "ValueError: no such thing"
    assert "in fails" in left["traceback"]


def test_alone_a_task_that_fails_raises(start, tmp_path):
    with pytest.raises(ValueError, match="no such thing"):
        start(fails, mode="RUN")
    assert not (tmp_path / "0" / "error.json").exists()


def test_resume_empties_the_folder_of_what_had_failed_and_keeps_what_had_finished(start, tmp_path):
    folder = start(fails)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").touch()
    (folder / "train.log").touch()
    start(lambda config: None, "resume=true")
    assert is_finished(folder)
    assert sorted(path.name for path in folder.iterdir()) == [".hydra", "summary.json", "train.log"]
    start(fails, "resume=true")
    assert is_finished(folder)
