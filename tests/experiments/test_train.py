"""`train(config, folder)`, in process."""

import json

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from nc_callbacks.experiments.train import train


def composed(*overrides):
    with initialize_config_module("nc_callbacks.conf", version_base="1.3"):
        return compose("train", list(overrides))


def test_a_run_in_the_folder_that_is_given(tmp_path):
    config = composed(
        "trainer=cpu",
        "model=mlp",
        "trainer.max_epochs=1",
        "callbacks=[checkpoint,neural_collapse]",
        "callbacks.neural_collapse.figures=false",
    )
    before = OmegaConf.to_yaml(config)
    metrics = train(config, tmp_path)
    assert OmegaConf.to_yaml(config) == before
    left = json.loads((tmp_path / "summary.json").read_text())["metrics"]
    assert metrics == pytest.approx(left)
    assert "nc/train/nc1" in metrics
    assert {"report.html", "metrics.csv", "hparams.yaml", "data.json"} <= {path.name for path in tmp_path.iterdir()}
    weights = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(name.startswith("network.") for name in weights)


def test_an_experiment_of_another_kind_gets_config_and_folder(tmp_path):
    task = {"_target_": "tests.experiments.test_train.note", "_partial_": True, "text": "here"}
    assert train(OmegaConf.create({"seed": 0, "task": task}), tmp_path) == {}
    assert (tmp_path / "note.txt").read_text() == f"here {tmp_path}"


def note(config, folder, text):
    (folder / "note.txt").write_text(f"{text} {config.folder}")
