"""What a job of a sweep leaves in its folder, however it ends."""

import json
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict

from nc_callbacks.runs.job import config_problem, is_finished, job
from nc_callbacks.runs.sweep import SweepSummary, read_runs

CONF = Path(__file__).parents[2] / "nc_callbacks" / "conf"


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


def composed(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["experiment=papyan_resnet18", "scale=smal"], "scale must be one of full, small, got 'smal'."),
        (
            ["experiment=seddik_fig2", "callbacks=none"],
            "No callback is chosen for the settings of callbacks.neural_collapse, callbacks.weight_mean_alignment, "
            "callbacks.quasi_interpolation, callbacks.feature_spectrum: they need callbacks=default.",
        ),
        (
            ["experiment=quasi_interpolation", "callbacks=neural_collapse"],
            "No callback is chosen for the settings of callbacks.feature_spectrum: they need callbacks=default.",
        ),
    ],
)
def test_choices_that_do_not_fit_together_are_said_in_a_sentence(start, tmp_path, overrides, message):
    config = composed(*overrides)
    summary = SweepSummary(metrics=[])
    with pytest.raises(SystemExit, match=f"^{re.escape(message)}$"):
        summary.on_run_start(config)
    OmegaConf.update(config, "hydra", {"sweep": {"dir": str(tmp_path)}, "overrides": {"task": []}}, force_add=True)
    with pytest.raises(SystemExit, match=f"^{re.escape(message)}$"):
        summary.on_multirun_start(config)
    # Where the choice itself is swept over, it is the error of its row.
    folder = start(lambda config: None, *overrides)
    assert json.loads((folder / "error.json").read_text())["error"] == f"ValueError: {message}"


@pytest.mark.slow
def test_choices_of_all_experiments_fit_together():
    for experiment in sorted(path.stem for path in (CONF / "experiment").glob("*.yaml")):
        for choice in ([], ["logger=none"]):
            assert config_problem(composed(f"experiment={experiment}", *choice)) is None
    assert config_problem(composed("callbacks=none")) is None


def test_an_experiment_sets_the_seed_and_an_override_wins(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 7\ntrainer:\n  max_epochs: 3\n")
    own = [f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine"]
    config = composed(*own)
    assert (config.seed, config.data.seed, config.trainer.max_epochs) == (7, 7, 3)
    assert composed(*own, "seed=2").seed == 2


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
