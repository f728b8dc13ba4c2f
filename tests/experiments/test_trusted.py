"""Run folders of others: nothing in them is executed, whatever they ask for."""

import os
import pickle
from contextlib import suppress
from functools import partial

import joblib
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from torch import nn

from nc_callbacks.experiments.data import ImageData
from nc_callbacks.experiments.models import Network, cnn
from nc_callbacks.experiments.rank import main
from nc_callbacks.experiments.sources import run_backbone
from nc_callbacks.experiments.trusted import UntrustedError, allowed_target, make, read_config

DATA = {"_target_": "nc_callbacks.experiments.data.ImageData", "name": "digits"}
MODEL = {"_target_": "nc_callbacks.experiments.models.cnn", "activation": "relu", "num_features": 8}


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (self.file,)


@pytest.fixture
def executed(tmp_path):
    """Where something appears if anything is executed."""
    return tmp_path / "executed"


@pytest.fixture
def make_run(tmp_path):
    """Writes a run folder with this configuration and a checkpoint that fits `MODEL`."""

    def write(config, checkpoint=True):
        folder = tmp_path / "run"
        (folder / ".hydra").mkdir(parents=True)
        (folder / "checkpoints").mkdir()
        (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
        if checkpoint:
            network = cnn((1, 8, 8), 10, activation="relu", num_features=8)
            weights = {f"network.{name}": value for name, value in network.state_dict().items()}
            torch.save({"state_dict": weights}, folder / "checkpoints" / "last.ckpt")
        return folder

    return write


def hostile_nodes(pickled, executed):
    """What would make `executed`, if it were called."""
    mkdir = {"_target_": "os.mkdir", "path": str(executed)}
    return {
        "os.system": {"_target_": "os.system", "command": f"mkdir '{executed}'"},
        "os.mkdir": mkdir,
        "eval": {"_target_": "builtins.eval", "_args_": [f"__import__('os').mkdir({str(executed)!r})"]},
        "torch.load": {"_target_": "torch.load", "f": str(pickled), "weights_only": False},
        "joblib.load": {"_target_": "joblib.load", "filename": str(pickled)},
        "through torch.nn": {
            "_target_": "torch.nn.modules.module.torch.load",
            "f": str(pickled),
            "weights_only": False,
        },
        "through this package": {
            "_target_": "nc_callbacks.experiments.data.np.load",
            "_args_": [str(pickled), None, True],
        },
        "nested": {**MODEL, "activation": mkdir},
        "nested in a list": {**MODEL, "activation": [{"deep": mkdir}]},
        "positional": {"_target_": "torch.nn.Sequential", "_args_": [mkdir]},
        "partial": {**MODEL, "activation": {"_target_": "torch.nn.Linear", "_partial_": True, "bias": mkdir}},
        "interpolated": {"_target_": "${evil}", "path": str(executed)},
        "interpolated in part": {"_target_": "os.${evil_part}", "path": str(executed)},
        "interpolated node": "${evil_node}",
        "resolved target": {"_target_": "${oc.decode:os.mkdir}", "path": str(executed)},
        "resolver": {**MODEL, "activation": "${nc_test_run:x}"},
        "resolver behind": {**MODEL, "activation": "${behind}"},
        "resolver within": {**MODEL, "activation": "${a${nc_test_run:x}}"},
    }


@pytest.mark.parametrize("part", ["model", "data"])
@pytest.mark.parametrize("kind", hostile_nodes("", ""))
def test_nothing_but_what_is_listed_is_called(kind, part, make_run, executed, tmp_path):
    pickled = tmp_path / "hostile.pkl"
    pickled.write_bytes(pickle.dumps(Touch(str(executed))))
    mkdir = {"_target_": "os.mkdir", "path": str(executed)}
    further = {"evil": "os.mkdir", "evil_part": "mkdir", "evil_node": mkdir, "behind": "${nc_test_run:x}"}
    OmegaConf.register_new_resolver("nc_test_run", lambda _: os.mkdir(executed), replace=True)
    try:
        folder = make_run({"data": DATA, "model": MODEL, **further, part: hostile_nodes(pickled, executed)[kind]})
        with pytest.raises(UntrustedError, match="in the run's folder"):
            run_backbone(folder)
    finally:
        OmegaConf.clear_resolver("nc_test_run")
    assert not executed.exists()


def test_the_files_would_execute_if_they_were_loaded(executed, tmp_path):
    (tmp_path / "hostile.pkl").write_bytes(pickle.dumps(Touch(str(executed))))
    for load in (joblib.load, partial(torch.load, weights_only=False)):
        with suppress(RuntimeError):  # no weights, torch finds afterwards
            load(tmp_path / "hostile.pkl")
        executed.rmdir()


@pytest.mark.parametrize(
    "target",
    [
        "torch.nn.functional.relu",
        "torch.nn.init.zeros_",
        "torch.nn.parameter.Parameter",
        "torch.nn.Linear.forward",
        "torch.nn._reduction.get_enum",
        "torch.nnx.Linear",
        "nc_callbacks.experiments.data.read_idx",
        "nc_callbacks.experiments.data.Path",
        "nc_callbacks.experiments.models._convolutions",
        "nc_callbacks.experiments.models.pairwise",
        "nc_callbacks.experiments.models.initialised",
        "nc_callbacks.experiments.losses.DotRegression",
        "nc_callbacks.experiments.transfer.write_rows",
        "nc_callbacks.NeuralCollapse",
        "cnn",
        "",
        None,
        3,
    ],
)
def test_targets_that_are_not_on_the_list(target):
    with pytest.raises(UntrustedError, match="From a folder only this package's data, models"):
        allowed_target(target)


def test_what_is_on_the_list_is_made_with_its_interpolations():
    config = {
        "seed": 3,
        "scale": "small",
        "paper": {"small": {"size": [4, 2]}},
        "data": {**DATA, "seed": "${seed}", "batch_size": "${paper.${scale}.size}", "root": "at/${scale}/${seed}"},
        "model": {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "torch.nn.Tanh"}]},
        "optimizer": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.5},
    }
    data = make(config, "data")
    assert isinstance(data, ImageData)
    assert (data.seed, data.batch_size, str(data.root)) == (3, [4, 2], "at/small/3")
    model = make(config, "model")
    assert isinstance(model[0], nn.Tanh)
    parameters = nn.Linear(2, 2).parameters()
    assert make(config, "optimizer")(parameters).param_groups[0]["lr"] == 0.5
    assert isinstance(make({"model": MODEL}, "model", image_shape=(1, 8, 8), num_classes=3), Network)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({**DATA, "seed": "${absent.key}"}, "refers to 'absent.key', which it does not have"),
        ({**DATA, "seed": "${round}"}, "refers to itself"),
        ({**DATA, "_recursive_": False}, "has '_recursive_', which is not followed here"),
        ({"name": "digits"}, "Expected the configuration to say with _target_ what data is"),
        (None, "Expected the configuration to say with _target_ what data is"),
    ],
)
def test_what_cannot_be_made_is_said(node, message):
    with pytest.raises(ValueError, match=message):
        make({"data": node, "round": "${round}"}, "data")


@pytest.mark.parametrize("text", ["a: [", "- 1", "a: !!python/object/apply:os.getcwd []", "\0"])
def test_a_broken_configuration_is_named(text, tmp_path):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=str(tmp_path / "config.yaml")):
        read_config(tmp_path / "config.yaml")


def test_only_the_own_run_folder_is_looked_at(make_run, tmp_path):
    folder = make_run({"data": DATA, "model": MODEL})
    weights = (folder / "checkpoints" / "last.ckpt").read_bytes()
    for place in ("a.ckpt", "checkpoints/b.ckpt"):
        (folder / place).write_bytes(weights)
        assert isinstance(run_backbone(folder / place), nn.Module)
    for place in ("deeper/a.ckpt", "deeper/checkpoints/a.ckpt", "checkpoints/deeper/a.ckpt"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(weights)
        with pytest.raises(FileNotFoundError, match=r"\.hydra/config\.yaml is not there"):
            run_backbone(folder / place)


def test_a_pickle_as_checkpoint_is_not_loaded(make_run, executed):
    folder = make_run({"data": DATA, "model": MODEL}, checkpoint=False)
    checkpoint = folder / "checkpoints" / "last.ckpt"
    for content in (Touch(str(executed)), {"state_dict": Touch(str(executed))}):
        torch.save(content, checkpoint)
        with pytest.raises(ValueError, match=f"^{checkpoint} cannot be read as a checkpoint of weights"):
            run_backbone(folder)
        checkpoint.write_bytes(pickle.dumps(content, protocol=2))
        with pytest.raises(ValueError, match=f"^{checkpoint} cannot be read as a checkpoint of weights"):
            run_backbone(folder)
    assert not executed.exists()


def test_broken_and_foreign_checkpoints_are_one_sentence(make_run):
    folder = make_run({"data": DATA, "model": MODEL})
    checkpoint = folder / "checkpoints" / "last.ckpt"
    whole = checkpoint.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2], whole[:-10]):
        checkpoint.write_bytes(content)
        with pytest.raises(ValueError, match=f"^{checkpoint} cannot be read as a checkpoint") as caught:
            run_backbone(folder)
        assert "\n" not in str(caught.value)
    for content, message in (
        ([1], f"^Expected {checkpoint} to be a checkpoint of train.py, with a state_dict"),
        ({"state_dict": None}, "with a state_dict; it has none"),
        ({"state_dict": {"network.classifier.weight": torch.ones(2)}}, f"^The weights in {checkpoint} are not of the"),
    ):
        torch.save(content, checkpoint)
        with pytest.raises(ValueError, match=message) as caught:
            run_backbone(folder)
        assert "\n" not in str(caught.value)


def test_the_command_makes_it_a_row(make_run, executed, tmp_path, capsys):
    folder = make_run({"data": DATA, "model": {"_target_": "os.mkdir", "path": str(executed)}})
    arguments = ["--backbones", str(folder), "--data", "digits", "--csv", str(tmp_path / "ranking.csv")]
    assert main([*arguments, "--device", "cpu"]) == 1
    assert "asks for 'os.mkdir'" in capsys.readouterr().out
    assert not executed.exists()
