"""The training script, run as a user runs it."""

import csv
import itertools
import json

import pytest
from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

from nc_callbacks.metrics import short
from tests.processes import ROOT, python

CONF = ROOT / "nc_callbacks" / "conf"
CHOICES = {
    group.name: [f"{group.name}={path.stem}" for path in sorted(group.glob("*.yaml"))]
    for group in sorted(CONF.iterdir())
    if any(group.glob("*.yaml"))
}
EXPERIMENTS = [[choice] for choice in CHOICES.pop("experiment")]
TOGETHER = [list(filter(None, choices)) for choices in itertools.zip_longest(*CHOICES.values())]
"""One choice of each group at a time, so that each file is composed, and none twice."""


def run(folder, *overrides):
    return python(ROOT / "train.py", f"hydra.run.dir={folder}", "trainer=cpu", *overrides, folder=folder)


@pytest.fixture(scope="module")
def default_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    finished = run(folder, "trainer.max_epochs=3", "figures=all")
    assert finished.returncode == 0, finished.stderr
    return folder, finished.stdout


@pytest.mark.slow
def test_run_folder(default_run):
    folder, printed = default_run
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    assert (folder / ".hydra" / "config.yaml").is_file()
    figures = {path.stem for path in (folder / "figures").glob("*.png")}
    assert {"summary", "collapse", "nc1", "nc2_equinorm", "nc3", "nc4", "class_mean_cosines_train"} <= figures
    assert printed.rstrip().splitlines()[-2:] == [f"Run folder: {folder}", f"Page: {folder}/report.html"]


@pytest.mark.slow
def test_summary_holds_the_last_values_of_the_log(default_run):
    folder, printed = default_run
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["epochs"] == 3
    assert summary["versions"]["torch"]
    with open(folder / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    # Lightning writes training's and validation's values in rows of their own.
    last = {key: [row[key] for row in rows if row[key]][-1] for key in summary["metrics"]}
    for key, value in summary["metrics"].items():
        assert float(last[key]) == pytest.approx(value, rel=1e-5), key
    for split in ("train", "val"):
        assert f"nc/{split}/nc1" in summary["metrics"]
    line = next(line for line in printed.splitlines() if line.split()[:2] == ["NC1", "nc1"])
    assert short(summary["metrics"]["nc/train/nc1"]) in line
    assert summary["metrics"]["nc/val/accuracy"] > 0.9


@pytest.mark.slow
def test_weights_load_without_unpickling(default_run):
    import torch

    checkpoint = torch.load(default_run[0] / "checkpoints" / "last.ckpt", weights_only=True)
    assert any("NeuralCollapse" in key for key in checkpoint["callbacks"])


def test_unknown_name_is_hydras_error(tmp_path):
    finished = run(tmp_path, "model.activatoin=relu")
    assert finished.returncode != 0
    assert "activatoin" in finished.stderr


def targets(content):
    """What the configuration would make, by name."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield from [value] if key == "_target_" else targets(value)
    elif isinstance(content, list):
        for value in content:
            yield from targets(value)


@pytest.mark.parametrize("choices", EXPERIMENTS + TOGETHER, ids=" ".join)
def test_each_choice_composes_and_names_what_there_is(choices, monkeypatch):
    with initialize_config_module("nc_callbacks.conf", version_base="1.3"):
        config = compose("train", [*choices, "folder=here", "++scale=small"], return_hydra_config=True)
    monkeypatch.setattr(HydraConfig.instance(), "cfg", config)
    content = [
        OmegaConf.to_container(value, resolve=True)
        for key, value in config.items()
        if key != "hydra" and OmegaConf.is_config(value)
    ]
    assert all(callable(get_object(name)) for name in targets(content))
    chosen = dict(choice.split("=") for choice in choices)
    if "data" in chosen:
        assert config.data.name == chosen["data"]
    if "model" in chosen:
        network = instantiate(config.model, image_shape=(3, 32, 32), num_classes=10)
        # As in the papers.
        assert network.classifier.bias is None
    if "experiment" in chosen:
        milestones = OmegaConf.select(config, "scheduler.milestones", default=())
        assert all(0 < step < config.trainer.max_epochs for step in milestones)


def test_fits_one_screen():
    assert len((ROOT / "train.py").read_text().splitlines()) <= 60


@pytest.mark.slow
def test_default_run_reaches_what_the_readme_says(tmp_path):
    finished = run(tmp_path)
    assert finished.returncode == 0, finished.stderr
    metrics = json.loads((tmp_path / "summary.json").read_text())["metrics"]
    assert metrics["nc/train/accuracy"] == 1
    assert metrics["nc/val/accuracy"] >= 0.97
    with open(tmp_path / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["nc/train/nc1"]]
    for name in ("nc1", "nc2_equinorm", "nc2_equiangularity", "nc3", "nc4"):
        assert float(rows[-1][f"nc/train/{name}"]) < float(rows[0][f"nc/train/{name}"]), name
