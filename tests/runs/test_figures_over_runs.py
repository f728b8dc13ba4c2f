"""Figures of many runs: what makes a group, means and spreads over seeds, points at the last look."""

import numpy as np
import pytest
from hydra import compose, initialize_config_module

from nc_callbacks.figures.over_runs import alignment_scatter, by_settings, means_over_seeds
from nc_callbacks.runs.folder import read
from tests.report.common import curves, make_run


@pytest.fixture
def runs(tmp_path):
    """tanh with and without batch norm, two seeds; ReLU, one."""
    number = 0
    for activation, norm, seeds in (("tanh", False, (0, 1)), ("tanh", True, (0, 1)), ("relu", False, (0,))):
        for seed in seeds:
            found = curves() | {"nc/train/mu_ratio": np.linspace(0.9, 0.1 + 0.1 * seed + 0.5 * norm, 30)}
            found["nc/train/wm_cosine"] = found["nc/train/wm_cosine"] + 0.02 * seed
            found["nc/val/accuracy_centred_means"] = found["nc/val/accuracy"] - 0.1 - 0.2 * seed
            model = {"_target_": "models.cnn", "activation": activation, "batch_norm": norm}
            make_run(tmp_path / str(number), found=found, seed=seed, model=model)
            number += 1
    return read(tmp_path)[1]


def test_groups_differ_by_more_than_the_seed(runs):
    groups = {label: [run.config["seed"] for run in group] for label, group in by_settings(runs).items()}
    assert groups == {"tanh, no batch norm": [0, 1], "tanh, batch norm": [0, 1], "relu, no batch norm": [0]}
    assert list(by_settings(runs[:2])) == ["digits"]


def test_settings_that_refer_to_others(tmp_path):
    """As the papers' experiments set them, by scale; what leads nowhere stays as it is written."""
    paper = {"full": {"init": "keras", "batch_norm": True}}
    for number, init in enumerate(("${paper.${scale}.init}", "torch", "${nowhere}")):
        model = {"_target_": "models.cnn", "activation": "tanh", "init": init}
        model["batch_norm"] = "${paper.${scale}.batch_norm}" if number == 0 else False
        make_run(tmp_path / str(number), model=model, scale="full", paper=paper)
    labels = list(by_settings(read(tmp_path)[1]))
    assert labels == ["batch norm, init keras", "no batch norm, init torch", "no batch norm, init ${nowhere}"]


def test_a_point_a_run(runs):
    (axes,) = alignment_scatter(runs).axes
    points = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}
    assert points["tanh, batch norm"][0] == pytest.approx([0.6, 0.7])
    assert points["tanh, batch norm"][1] == pytest.approx([0.91, 0.93])
    assert points["relu, no batch norm"] == (pytest.approx([0.1]), pytest.approx([0.91]))


def test_means_and_spreads_over_seeds(runs):
    cosine, train, val = means_over_seeds(runs).axes
    lines = {line.get_label(): line for line in cosine.lines}
    assert set(lines) == {"tanh, no batch norm (2 seeds)", "tanh, batch norm (2 seeds)", "relu, no batch norm"}
    assert lines["tanh, batch norm (2 seeds)"].get_ydata()[-1] == pytest.approx(0.92)
    # The deviation of two values with divisor 1: half of their difference, times √2.
    (band, _) = cosine.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.max() == pytest.approx(0.92 + 0.01 * 2**0.5)
    assert val.lines[0].get_ydata()[-1] == pytest.approx(0.2, abs=1e-6)
    assert train.lines[0].get_ydata()[-1] == pytest.approx(0.001, abs=1e-6)


@pytest.mark.parametrize(("experiment", "figure"), [("seddik_ablation", "seeds"), ("seddik_activations", "alignment")])
def test_experiments_that_end_with_them(experiment, figure):
    with initialize_config_module("nc_callbacks.conf", version_base="1.3"):
        sweep = compose("train", [f"experiment={experiment}"], return_hydra_config=True).hydra
        chosen = {name: str(values).split(",")[-1] for name, values in sweep.sweeper.params.items()}
        config = compose("train", [f"experiment={experiment}", *(f"{k}={v}" for k, v in chosen.items())])
    assert (sweep.mode.name, sweep.callbacks.sweep.figure) == ("MULTIRUN", figure)
    assert config.data.name == "mnist"
    assert config.callbacks.weight_mean_alignment.epochs == "log"
    if experiment == "seddik_ablation":
        model = config.model
        assert (model.init, model.batch_norm, model.dropout, config.seed) == ("keras", True, 0.3, 2)
        assert (config.data.samples, config.data.batch_size, config.trainer.max_epochs) == (12000, 200, 20)
    else:
        assert (config.model.activation, config.trainer.max_epochs, config.data.batch_size) == ("silu", 50, 1000)


def test_lines_of_many_settings_are_told_apart(tmp_path):
    for number in range(7):
        make_run(tmp_path / str(number), model={"_target_": "models.cnn", "activation": f"a{number}"})
    cosine = means_over_seeds(read(tmp_path)[1]).axes[0]
    assert len({(line.get_color(), line.get_linestyle()) for line in cosine.lines}) == 7
