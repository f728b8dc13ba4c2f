"""`python -m nc_callbacks.transfer rank`, and the backbones and data that it takes."""

import csv
import json

import pytest
import torch
from PIL import Image
from torch import nn

from nc_callbacks.experiments.models import cnn
from nc_callbacks.experiments.sources import run_backbone, source, target_loaders, torchvision_backbone
from nc_callbacks.transfer.__main__ import main
from tests.processes import python

CONFIG = """
seed: 0
data: {_target_: nc_callbacks.experiments.data.ImageData, name: digits, seed: "${seed}"}
model: {_target_: nc_callbacks.experiments.models.cnn, activation: relu, num_features: 32}
"""


def pixels():
    """A backbone for the command: 8 × 8 images as they are."""
    return nn.Flatten()


@pytest.fixture
def run_folder(tmp_path):
    """A run folder as train.py leaves it, of a network that is returned too."""
    torch.manual_seed(0)
    network = cnn((1, 8, 8), 10, activation="relu", num_features=32)
    folder = tmp_path / "run"
    (folder / ".hydra").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    (folder / ".hydra" / "config.yaml").write_text(CONFIG)
    weights = {f"network.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": weights | {"loss.alpha": torch.ones(1)}}, folder / "checkpoints" / "last.ckpt")
    return folder, network


@pytest.mark.slow
def test_command_prints_the_table_and_writes_csv(tmp_path, run_folder):
    names = ["tests.experiments.test_rank_command:pixels", str(run_folder[0]), "absent.ckpt"]
    command = ["-m", "nc_callbacks.transfer", "rank", "--backbones", ",".join(names)]
    run = python(*command, "--data", "digits", "--csv", tmp_path / "ranking.csv", "--device", "cpu")
    assert run.returncode == 0, run.stderr
    with open(tmp_path / "ranking.csv") as file:
        rows = list(csv.DictReader(file))
    assert {row["name"] for row in rows} == set(names)
    assert list(rows[0])[:7] == ["name", "cm_accuracy", "nc1", "mu_ratio", "seconds", "error", "layer"]
    assert float(rows[0]["lda_accuracy"]) > float(rows[1]["lda_accuracy"]) > 0.2
    assert "absent.ckpt is not there" in rows[2]["error"]
    lines = run.stdout.splitlines()
    assert lines[0] == "digits: 1,437 training and 360 test samples of 10 classes"
    assert [line.split()[0] for line in lines[2:5]] == [row["name"] for row in rows]
    assert f"{float(rows[0]['cm_accuracy']):.4f}" in lines[2]


def test_score_and_layers_are_those_asked_for(tmp_path, capsys):
    arguments = ["--backbones", "tests.experiments.test_rank_command:pixels", "--data", "digits", "--by", "nc1"]
    given = ["rank", *arguments, "--layers", "0,9", "--csv", str(tmp_path / "a.csv"), "--device", "cpu"]
    assert main(given) == 0
    printed = capsys.readouterr().out
    assert "by nc1" in printed
    assert "The backbone has no module '9'" in printed


def test_timm_backbone():
    pytest.importorskip("timm")
    backbone = source("timm:resnet10t:random", "cpu")().eval()
    with torch.no_grad():
        assert backbone(torch.rand(2, 1, 8, 8)).shape == (2, 512)
    with pytest.raises(ValueError, match="must be 'pretrained' or 'random', got 'V1'"):
        source("timm:resnet10t:V1", "cpu")()


@pytest.mark.parametrize("processor", [False, True])
def test_folder_of_transformers(tmp_path, processor):
    transformers = pytest.importorskip("transformers")
    settings = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(image_size=16, patch_size=8, **settings)
    model = transformers.ViTModel(config).eval()
    model.save_pretrained(tmp_path)
    mean, std, size = [0.5] * 3, [0.5] * 3, 16
    if processor:
        mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
        wanted = {"size": {"height": 16, "width": 16}, "image_mean": mean, "image_std": std}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(wanted))
    backbone, images = source(str(tmp_path), "cpu")().eval(), torch.rand(2, 1, size, size)
    shaped = (images.expand(-1, 3, -1, -1) - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    with torch.no_grad():
        expected = model(pixel_values=shaped).last_hidden_state.mean(1)
        torch.testing.assert_close(backbone(images), expected)


def test_exit_status_where_nothing_could_be_ranked(tmp_path, capsys):
    arguments = ["rank", "--backbones", "absent.ckpt", "--data", "digits", "--csv", str(tmp_path / "ranking.csv")]
    assert main(arguments) == 1
    with pytest.raises(SystemExit) as exit_:
        main([*arguments[:4], "nowhere"])
    assert exit_.value.code == 2
    assert "--data must be one of digits, fashion_mnist" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["", "checkpoints/last.ckpt"])
def test_run_backbone_has_the_trained_weights(run_folder, given):
    folder, network = run_folder
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(run_backbone(folder / given)(images), network.backbone(images))


def test_checkpoint_without_configuration(tmp_path):
    torch.save({}, tmp_path / "a.ckpt")
    with pytest.raises(FileNotFoundError, match=r"\.hydra/config\.yaml is not there"):
        run_backbone(tmp_path / "a.ckpt")


@pytest.mark.parametrize(("name", "features"), [("resnet18", 512), ("mobilenet_v3_small", 1024)])
def test_torchvision_backbone_takes_small_grey_images(name, features):
    backbone = source(f"torchvision:{name}:random", "cpu")().eval()
    with torch.no_grad():
        assert backbone(torch.rand(2, 1, 8, 8)).shape == (2, features)


def test_unknown_weights():
    with pytest.raises(ValueError, match=r"weights of resnet18 must be 'random' or one of IMAGENET1K_V1.*got 'V9'"):
        torchvision_backbone("resnet18", "V9")


def test_folder_with_a_subfolder_a_class(tmp_path):
    for label in ("cat", "dog", "eel"):
        (tmp_path / label).mkdir()
        for number in range(2):
            Image.new("RGB", (300, 260)).save(tmp_path / label / f"{number}.png")
    loader, test_loader, num_classes = target_loaders(str(tmp_path), "data", 4)
    images, labels = next(iter(loader))
    assert (images.shape, labels.tolist(), test_loader, num_classes) == ((4, 3, 224, 224), [0, 0, 1, 1], None, 3)
