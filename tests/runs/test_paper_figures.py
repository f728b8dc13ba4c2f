"""The papers' figures: every experiment composes as the papers say, and what is drawn is what the runs measured."""

import csv
from functools import cache

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from nc_callbacks.experiments.data import ImageData
from nc_callbacks.figures import papers
from nc_callbacks.runs.folder import read
from nc_callbacks.runs.paper_figures import FIGURES, LOWER, draw_paper_figure
from tests.figures.common import picture as pixels_of
from tests.processes import ROOT, python
from tests.report.common import curves, make_failed_run, make_run

CONF = ROOT / "nc_callbacks" / "conf"

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


@cache
def composed(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides), return_hydra_config=True)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", PAPERS)
def test_composes_as_published(experiment):
    sets, batch_size, epochs, optimizer, rate = PAPERS[experiment]
    sweep = composed(f"experiment={experiment}").hydra
    assert sweep.mode.name == "MULTIRUN"
    assert sweep.sweeper.params.data.split(",") == sets
    assert sweep.callbacks.sweep.figure == experiment
    for name, trained in zip(sets, epochs, strict=True):
        config = composed(f"experiment={experiment}", f"data={name}")
        assert config.data.batch_size == batch_size
        assert config.trainer.max_epochs == trained
        assert config.optimizer._target_ == f"torch.optim.{optimizer}"
        assert config.optimizer.lr == rate
        steps = list(config.scheduler.milestones)
        assert len(steps) == {"seddik": 0, "lindegaard": 3, "papyan": 2}[experiment.split("_")[0]]
        assert all(0 < step < trained for step in steps)
        if experiment.startswith("seddik"):
            assert (config.model.init, config.model.batch_norm, config.optimizer.eps) == ("keras", True, 1e-7)
            assert 0 < config.model.dropout < 1
        if experiment.startswith("lindegaard"):
            assert (config.optimizer.momentum, config.optimizer.weight_decay) == (0.9, 5e-4)
            assert config.loss._target_.endswith("OneHotSquaredError")


@pytest.mark.parametrize("experiment", PAPERS)
def test_small_scale_runs_on_digits(experiment):
    small = composed(f"experiment={experiment}", "scale=small")
    assert small.hydra.sweeper.params.data == "digits"
    config = composed(f"experiment={experiment}", "scale=small", "data=digits")
    assert 0 < config.trainer.max_epochs <= 150
    if experiment.startswith("seddik"):
        assert (config.model.init, config.model.batch_norm, config.model.dropout) == ("torch", False, 0)
    assert all(0 < step < config.trainer.max_epochs for step in config.scheduler.milestones)


NC2 = ("nc2_equinorm", "nc2_equinorm_weights", "nc2_equiangularity", "nc2_equiangularity_weights")
SAMPLES = np.array([[7, 1, 0.08, -0.01, np.nan, 0.02, 0.03], [2, 3, -0.055, 0.04, 0.05, 0.06, np.nan]])
"""Two samples of four classes: index, label, ε, and ε̃ by class."""


def add_looks(path):
    """What a network with two dense layers and `QuasiInterpolation` leave."""
    with np.load(path) as file:
        arrays = dict(file)
    at = arrays["nc/train/explained_variance@epochs"]
    shares = np.array([0.5, 0.3, 0.15, 0.05])
    for name, value in {
        "explained_variance": shares,
        f"{LOWER}/explained_variance": shares[::-1],
        "sqi_samples": SAMPLES,
        "counts": np.full(4, 9),
    }.items():
        arrays[f"nc/train/{name}"] = np.stack([value] * len(at)).astype(np.float32)
        arrays[f"nc/train/{name}@epochs"] = at
        arrays[f"nc/train/{name}@step"] = np.array(1)
    np.savez(path, **arrays)


def write_transfer(folder):
    """Two methods, two variances, two seeds."""
    rows = ["variance,method,mean,std", *(f"{v},{m},{0.9 - v},0.01" for v in (0, 0.2) for m in ("CM", "WFS"))]
    (folder / "accuracy.csv").write_text("\n".join(rows) + "\n")
    rows = ["method,variance,seed,step,accuracy"]
    for v, seed in ((0, 0), (0, 1), (0.2, 0), (0.2, 1)):
        rows += [f"CM,{v},{seed},0,{0.8 - v}", f"WFS,{v},{seed},0,0.1", f"WFS,{v},{seed},10,{0.9 - v + 0.02 * seed}"]
    (folder / "curves.csv").write_text("\n".join(rows) + "\n")


def sweep_of(folder):
    """Two data sets × two models, one of which has failed."""
    found = curves() | {
        "nc/train/sqi_epsilon": np.linspace(0.5, 0.1, 30),
        "nc/train/sqi_epsilon_off": np.linspace(0.05, 0.02, 30),
        "nc/train/sqi_ratio": np.linspace(1.1, 1.0, 30),
        "nc/train/sqi_gap": np.linspace(0.05, -0.08, 30),
        "nc/train/sqi_epsilon_rel_std": np.linspace(1, 3, 30),
        "nc/train/sqi_epsilon_off_rel_std": np.linspace(1, 4, 30),
        "nc/train/nc3": np.geomspace(1, 0.1, 30),
        "nc/train/mu_ratio": np.linspace(0.5, 0.1, 30),
    }
    found |= {f"nc/train/{name}": np.geomspace(0.5, 0.01 * number, 30) for number, name in enumerate(NC2, 1)}
    for start in ("", f"{LOWER}/"):
        found |= {
            f"nc/train/{start}nc1": np.geomspace(1, 0.3 if start else 0.02, 30),
            f"nc/train/{start}nc2_equiangularity_signed": np.linspace(0.3, 0.2 if start else -0.01, 30),
            f"nc/train/{start}nc2_equinorm": np.linspace(0.4, 0.3 if start else 0.02, 30),
            f"nc/train/{start}ncc_accuracy": np.linspace(0.5, 0.75 if start else 1, 30),
        }
    models = ("conv_1fc", "relu"), ("conv_2fc", "tanh")
    for number, (data, (model, activation)) in enumerate((d, m) for d in ("digits", "mnist") for m in models):
        config = {
            "seed": 40 + number,
            "data": {"name": data},
            "model": {"_target_": f"models.{model}", "activation": activation},
            "task": {"curve_variances": [0.2]},
        }
        if number < 3:
            run = make_run(folder / str(number), found=found, **config)
            add_looks(run / "looks.npz")
            write_transfer(run)
        else:
            make_failed_run(folder / str(number))
    return folder


LAST = {
    ("seddik_fig1", "mu1_per_class", "3"): 30.003,
    ("seddik_fig2", "wm_cosine_per_class", "3"): 30.003 / 40,
    ("seddik_fig2", "nc/val/accuracy_centred_means", ""): 0.999,
    ("alignment", "nc/train/mu_ratio", ""): 0.1,
    ("seeds", "nc/train/wm_cosine", ""): 0.91,
    ("lindegaard_fig1", "nc/train/sqi_epsilon_off_rel_std", ""): 4,
    ("lindegaard_fig2", f"nc/train/{LOWER}/nc1", ""): 0.3,
    ("lindegaard_fig2", "nc/train/nc1", ""): 0.02,
    ("lindegaard_fig2", "train/loss", ""): 0.01,
    ("lindegaard_fig3", "explained_variance", "0"): 0.5,
    ("lindegaard_fig3", f"{LOWER}/explained_variance", "3"): 0.5,
    ("lindegaard_table1", "epsilon of sample 7", "1"): 0.08,
    ("lindegaard_table1", "epsilon_off of sample 7", "0"): -0.01,
    ("lindegaard_table1", "epsilon of sample 2", "3"): -0.055,
    ("lindegaard_table1", "epsilon_off of sample 2", "2"): 0.06,
    ("papyan_resnet18", "nc/train/nc2_equiangularity_weights", ""): 0.04,
}
"""Values of the last look, by figure, metric and index."""


@pytest.mark.slow
@pytest.mark.parametrize("figure", FIGURES)
def test_figure_and_csv_show_what_finished_runs_measured(figure, tmp_path):
    picture, table = draw_paper_figure(sweep_of(tmp_path), figure)
    assert (picture.name, table.name) == (f"{figure}.png", f"{figure}.csv")
    assert pixels_of(picture).shape[1] > 500
    rows = read_rows(table)
    runs = {tuple(row[name] for name in ("run", "data", "model", "activation", "seed")) for row in rows}
    assert runs == {
        ("0", "digits", "conv_1fc", "relu", "40"),
        ("1", "digits", "conv_2fc", "tanh", "41"),
        ("2", "mnist", "conv_1fc", "relu", "42"),
    }
    if figure == "seddik_fig3":
        final = [row for row in rows if row["table"] == "accuracy" and row["data"] == "mnist"]
        assert [(row["variance"], row["method"]) for row in final][-1] == ("0.2", "WFS")
        assert float(final[-1]["mean"]) == pytest.approx(0.7)
        draws = [(row["run"], row["draw"]) for row in rows if row["table"] == "curves"]
        assert draws == [(run, draw) for run in "012" for draw in "000111000111"]
        return
    last = {(row["metric"], row["index"]): float(row["value"]) for row in rows if row["epoch"] == "30"}
    expected = {key[1:]: value for key, value in LAST.items() if key[0] == figure}
    assert expected
    for key, value in expected.items():
        assert last[key] == pytest.approx(value, rel=1e-5), key


def read_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def runs(tmp_path):
    return read(sweep_of(tmp_path))[1][:3]


def lines(axes):
    return {line.get_label(): line.get_ydata() for line in axes.lines}


def test_layers_figure_sets_the_layers_beside_each_other(runs):
    figure = papers.layers_grid(runs)
    assert len(figure.axes) == 5 * 3
    loss, nc1, _, _, nearest = figure.axes[5:10]
    np.testing.assert_allclose(loss.lines[0].get_ydata(), np.geomspace(2, 0.01, 30), rtol=1e-6)
    np.testing.assert_allclose(lines(nc1)[LOWER][-1], 0.3, rtol=1e-6)
    np.testing.assert_allclose(lines(nc1)["classifier's input"][-1], 0.02, rtol=1e-6)
    # The error, not the accuracy.
    np.testing.assert_allclose(lines(nearest)[LOWER], np.linspace(0.5, 0.25, 30), rtol=1e-6)
    first_without_error = 1 + int(np.argmax(curves()["nc/train/tpt"]))
    assert [line.get_xdata()[0] for line in nc1.lines if line.get_linestyle() == ":"] == [first_without_error]


def test_spectra_figure_is_normalised_and_marks_the_classes(runs):
    singular, cumulative = papers.spectrum_grid(runs).axes[:2]
    np.testing.assert_allclose(np.square(lines(singular)["classifier's input"]).sum(), 1, rtol=1e-6)
    np.testing.assert_allclose(lines(cumulative)[LOWER], [0.05, 0.2, 0.5, 1], rtol=1e-6)
    assert cumulative.lines[-1].get_xdata()[0] == 4 - 1


def test_table_of_samples_is_in_thousandths(runs):
    (table,) = papers.samples_table(runs[:1]).axes[0].tables
    text = {place: cell.get_text().get_text() for place, cell in table.get_celld().items()}
    assert [text[1, column] for column in range(7)] == ["7", "1", "80.0", "-10.0", "", "20.0", "30.0"]
    assert text[2, 2] == "-55.0"


def test_collapse_figure_has_a_column_a_run(runs):
    figure = papers.collapse_grid(runs)
    assert len(figure.axes) == 5 * 3
    assert [axes.get_title().split(":")[0] for axes in figure.axes[:3]] == ["digits", "digits", "MNIST"]
    np.testing.assert_allclose(lines(figure.axes[6])["weights"][-1], 0.04, rtol=1e-6)
    np.testing.assert_allclose(figure.axes[12].lines[0].get_ydata(), curves()["nc/train/nc4"], atol=1e-7)


def test_transfer_figure_draws_accuracies_and_the_curves_asked_for(runs):
    figure = papers.transfer_grid(runs)
    assert len(figure.axes) == 2 * 3
    steps = figure.axes[3]
    assert "σ² = 0.2" in steps.get_title()
    np.testing.assert_allclose(lines(steps)["WFS"], [0.1, 0.71])
    np.testing.assert_allclose(lines(steps)["CM"], [0.6, 0.6])


def test_lines_of_the_interpolation_figure(runs):
    figure = papers.interpolation_grid(runs)
    averages, _, spread = figure.axes[0], figure.axes[2], figure.axes[4]
    np.testing.assert_allclose(lines(averages)["1FC: ε"], np.linspace(0.5, 0.1, 30), rtol=1e-6)
    # ε − gap is (k − 1) ε̃.
    np.testing.assert_allclose(lines(averages)["2FC: (k − 1) ε̃"], np.linspace(0.45, 0.18, 30), rtol=1e-6)
    np.testing.assert_allclose(spread.lines[0].get_ydata(), np.linspace(1, 4, 30), rtol=1e-6)


def test_no_finished_run_draws_nothing(tmp_path):
    make_failed_run(tmp_path / "0")
    assert draw_paper_figure(tmp_path, "seddik_fig1") == []
    with pytest.raises(ValueError, match=r"figure must be one of seddik_fig1, .*papyan_resnet18, got 'fig9'"):
        draw_paper_figure(tmp_path, "fig9")


def train(folder, *overrides):
    return python(ROOT / "train.py", f"hydra.sweep.dir={folder}", "trainer=cpu", *overrides, folder=folder.parent)


@pytest.mark.slow
def test_full_scale_without_its_data_says_where_it_was_looked_for(tmp_path):
    settings = (f"data.root={tmp_path}", "data.download=false")
    finished = train(tmp_path / "sweep", "experiment=lindegaard_fig2", *settings)
    assert finished.returncode == 1
    (row,) = read_rows(tmp_path / "sweep" / "sweep.csv")
    assert row["status"] == "failed"
    assert row["error"].startswith(f"FileNotFoundError: cifar10 was looked for in {tmp_path}, which should hold")
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.slow
def test_one_command_leaves_figure_and_csv(tmp_path):
    names = ("neural_collapse", "weight_mean_alignment", "quasi_interpolation", "feature_spectrum")
    without_figures = [f"callbacks.{name}.figures=false" for name in names]
    settings = ("scale=small", "trainer.max_epochs=1", "scheduler.milestones=[]", *without_figures)
    finished = train(tmp_path / "sweep", "experiment=lindegaard_table1", *settings)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert pixels_of(tmp_path / "sweep" / "lindegaard_table1.png").shape[1] > 500
    rows = read_rows(tmp_path / "sweep" / "lindegaard_table1.csv")
    assert len(rows) == 5 * 10
    # ε stands at the label.
    labels = {row["metric"]: int(row["index"]) for row in rows if row["metric"].startswith("epsilon of")}
    data = ImageData("digits")
    data.setup()
    assert [labels[f"epsilon of sample {i}"] for i in range(5)] == data.train_set.tensors[1][:5].tolist()
