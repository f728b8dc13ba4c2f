"""The papers' figures: every experiment composes as the papers say, and what is drawn is what the runs measured."""

import csv
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from nc_callbacks.experiments.paper_figures import FIGURES, draw_paper_figure
from nc_callbacks.figures import papers
from nc_callbacks.report.read import read
from tests.report.common import curves, make_failed_run, make_run

CONF = Path(__file__).parents[2] / "conf"

PAPERS = {
    # Data sets; batch size, epochs, optimiser and learning rate as published.
    "seddik_fig1": (["mnist"], 1000, [50], "Adam", 0.001),
    "seddik_fig2": (["mnist", "fashion_mnist", "cifar10", "cifar100"], 1000, [50, 50, 50, 100], "Adam", 0.001),
    "seddik_fig3": (["mnist", "fashion_mnist", "cifar10", "cifar100"], 1000, [50, 50, 50, 100], "Adam", 0.001),
    "lindegaard_fig1": (["mnist", "cifar10"], 128, [350, 1100], "SGD", 0.067),
    "lindegaard_fig2": (["cifar10"], 128, [1100], "SGD", 0.067),
    "lindegaard_fig3": (["cifar10"], 128, [1100], "SGD", 0.067),
    "lindegaard_table1": (["cifar10"], 128, [1100], "SGD", 0.067),
    "papyan_resnet18": (["mnist", "fashion_mnist", "cifar10"], 128, [350, 350, 350], "SGD", 0.05),
}


def composed(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    return config


@pytest.mark.parametrize("experiment", PAPERS)
def test_composes_as_published(experiment):
    sets, batch_size, epochs, optimizer, rate = PAPERS[experiment]
    sweep = composed(f"experiment={experiment}").hydra
    assert sweep.mode.name == "MULTIRUN"
    assert sweep.sweeper.params.data.split(",") == sets
    for name, trained in zip(sets, epochs, strict=True):
        config = composed(f"experiment={experiment}", f"data={name}")
        assert config.data.batch_size == batch_size
        assert config.trainer.max_epochs == trained
        assert config.optimizer._target_ == f"torch.optim.{optimizer}"
        assert config.optimizer.lr == rate
        steps = list(config.scheduler.milestones)
        assert len(steps) == {"seddik": 0, "lindegaard": 3, "papyan": 2}[experiment.split("_")[0]]
        assert all(0 < step < trained for step in steps)
        if experiment.startswith("lindegaard"):
            assert (config.optimizer.momentum, config.optimizer.weight_decay) == (0.9, 5e-4)
            assert config.loss._target_.endswith("OneHotSquaredError")


@pytest.mark.parametrize("experiment", PAPERS)
def test_small_scale_runs_on_digits(experiment):
    small = composed(f"experiment={experiment}", "scale=small")
    assert small.hydra.sweeper.params.data == "digits"
    config = composed(f"experiment={experiment}", "scale=small", "data=digits")
    assert 0 < config.trainer.max_epochs <= 40


def sweep_of(folder):
    """Two data sets × two activations, one of which has failed."""
    found = curves() | {
        "nc/train/sqi_epsilon": np.linspace(0.5, 0.1, 30),
        "nc/train/sqi_epsilon_off": np.linspace(0.05, 0.02, 30),
        "nc/train/sqi_ratio": np.linspace(1.1, 1.0, 30),
        "nc/train/sqi_gap": np.linspace(0.05, -0.08, 30),
        "nc/train/sqi_epsilon_rel_std": np.linspace(1, 3, 30),
        "nc/train/sqi_epsilon_off_rel_std": np.linspace(1, 4, 30),
    }
    models = ("conv_1fc", "relu"), ("conv_2fc", "tanh")
    for number, (data, (model, activation)) in enumerate((d, m) for d in ("digits", "mnist") for m in models):
        config = {"data": {"name": data}, "model": {"_target_": f"models.{model}", "activation": activation}}
        if number < 3:
            make_run(folder / str(number), found=found, **config)
        else:
            make_failed_run(folder / str(number))
    return folder


@pytest.mark.parametrize("figure", FIGURES)
def test_figure_and_csv_show_what_finished_runs_measured(figure, tmp_path):
    picture, table = draw_paper_figure(sweep_of(tmp_path), figure)
    assert picture.read_bytes().startswith(b"\x89PNG")
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["data"], row["activation"]) for row in rows} == {
        ("digits", "relu"),
        ("digits", "tanh"),
        ("mnist", "relu"),
    }
    what = FIGURES[figure]
    assert {row["metric"] for row in rows} == {*what.vectors, *what.metrics}
    last = {(row["metric"], row["class"]): float(row["value"]) for row in rows if row["epoch"] == "30"}
    if figure == "seddik_fig1":
        assert last["mu1_per_class", "3"] == pytest.approx(30.003)
    elif figure == "seddik_fig2":
        assert last["wm_cosine_per_class", "3"] == pytest.approx(30.003 / 40)
        assert last["nc/val/accuracy_centred_means", ""] == pytest.approx(0.999)
    else:
        assert last["nc/train/sqi_epsilon_off_rel_std", ""] == pytest.approx(4)


def test_lines_of_the_interpolation_figure(tmp_path):
    _, runs = read(sweep_of(tmp_path))
    figure = papers.interpolation_grid(runs[:3])
    averages, _, spread = figure.axes[0], figure.axes[2], figure.axes[4]
    lines = {line.get_label(): line.get_ydata() for line in averages.lines}
    np.testing.assert_allclose(lines["1FC: ε"], np.linspace(0.5, 0.1, 30), rtol=1e-6)
    # ε − gap is (k − 1) ε̃.
    np.testing.assert_allclose(lines["2FC: (k − 1) ε̃"], np.linspace(0.45, 0.18, 30), rtol=1e-6)
    np.testing.assert_allclose(spread.lines[0].get_ydata(), np.linspace(1, 4, 30), rtol=1e-6)


def test_no_finished_run_draws_nothing(tmp_path):
    make_failed_run(tmp_path / "0")
    assert draw_paper_figure(tmp_path, "seddik_fig1") == []
    with pytest.raises(ValueError, match="figure must be one of seddik_fig1, seddik_fig2, lindegaard_fig1, got 'fig9'"):
        draw_paper_figure(tmp_path, "fig9")
