"""`train(config, folder)`, in process."""

import json

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from PIL import Image

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


@pytest.mark.parametrize("memory", [1, 1e-9], ids=["in memory", "streamed"])
def test_a_folder_of_images(memory, tmp_path):
    """Dark and bright squares, told apart after a few epochs; the look counts each image once."""
    generator = np.random.default_rng(0)
    for split, counts in (("train", {"bright": 12, "dark": 8}), ("val", {"bright": 3, "dark": 4})):
        for name, count in counts.items():
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 100, (9, 8), dtype=np.uint8) + (150 if name == "bright" else 0)
                Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "images" / split / name / f"{i}.png")
    config = composed(
        "trainer=cpu",
        "data=image_folder",
        f"data.root={tmp_path / 'images'}",
        f"data.memory={memory}",
        "data.num_workers=0",
        "data.size=8",
        "data.batch_size=5",
        "model=mlp",
        "model.init=keras",
        "trainer.max_epochs=6",
        "callbacks=[neural_collapse,look_recorder]",
        "callbacks.neural_collapse.figures=false",
        "callbacks.neural_collapse.every_n_epochs=6",
    )
    metrics = train(config, tmp_path / "run")
    assert (metrics["nc/train/accuracy"], metrics["nc/val/accuracy"]) == (1, 1)
    with np.load(tmp_path / "run" / "looks.npz") as looks:
        assert looks["nc/train/counts"][-1].tolist() == [12, 8]
        assert looks["nc/val/counts"][-1].tolist() == [3, 4]
    data = json.loads((tmp_path / "run" / "data.json").read_text())
    assert (data["classes"], data["class_counts"], data["val"]) == (["bright", "dark"], [12, 8], 7)


def test_an_experiment_of_another_kind_gets_config_and_folder(tmp_path):
    task = {"_target_": "tests.experiments.test_train.note", "_partial_": True, "text": "here"}
    assert train(OmegaConf.create({"seed": 0, "task": task}), tmp_path) == {}
    assert (tmp_path / "note.txt").read_text() == f"here {tmp_path}"


def note(config, folder, text):
    (folder / "note.txt").write_text(f"{text} {config.folder}")
