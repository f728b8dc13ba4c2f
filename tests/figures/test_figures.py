"""What the figures show: the right values, named axes, few lines, readable with many classes."""

import gc

import numpy as np
import pytest
import torch

from nc_callbacks import figures
from nc_callbacks.figures import style
from nc_callbacks.figures.each import number_figures
from nc_callbacks.figures.ticks import logarithmic
from tests.callbacks.common import Classifier, loader
from tests.figures.common import drawn, picture


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return drawn(tmp_path_factory.mktemp("figures"), Classifier(), loader(1), 4)


def check_axes(figure):
    for axes in figure.axes:
        if axes.axison:
            assert axes.get_xlabel() or axes.get_ylabel()
        assert len(axes.lines) <= 10


def test_files(run):
    names, _ = run
    assert {
        "nc1", "nc2_etf", "nc3", "collapse", "collapse_val", "layers", "class_mean_cosines_train",
        "near_optimality_train", "wm_cosine_train", "wm_cosine_val", "accuracy_centred_means",
        "quasi_interpolation_train", "spectrum_train", "spectrum_effective_rank_train",
    } <= names  # fmt: skip


def test_lines_are_the_history(run):
    collapse, alignment, interpolation, _ = run[1]
    figure = figures.collapse_figure(collapse.history, collapse.latest)
    line = figure.axes[0].lines[0]
    assert list(line.get_xdata()) == [1, 2, 3, 4]
    assert list(line.get_ydata()) == [record["nc/train/nc1"] for record in collapse.history]
    check_axes(figure)

    figure = figures.cosines_figure(alignment.history)
    values = np.array([line.get_ydata() for line in figure.axes[0].lines]).T
    np.testing.assert_array_equal(values, [record["nc/train/wm_cosine_per_class"] for record in alignment.history])
    check_axes(figure)

    figure = figures.interpolation_figure(interpolation.history)
    epsilon, off = (line.get_ydata() for line in figure.axes[0].lines)
    last = interpolation.latest
    assert epsilon[-1] == last["nc/train/sqi_epsilon"]
    assert off[-1] == pytest.approx(3 * last["nc/train/sqi_epsilon_off"])
    check_axes(figure)


def test_layers_and_spectra_have_a_line_a_layer(run):
    collapse, alignment, _, spectrum = run[1]
    figure = figures.layers_figure(collapse.history, ["train", "train/body.4"])
    assert [len(axes.lines) for axes in figure.axes] == [2] * 4
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["classifier's input", "body.4"]
    figure = figures.spectrum_figure(spectrum.latest)
    assert [len(axes.lines) for axes in figure.axes] == [2, 2]
    assert figure.axes[1].lines[1].get_ydata()[-1] == pytest.approx(1)
    for made in (
        figure,
        figures.near_optimality_figure(alignment.latest),
        figures.accuracies_figure(alignment.history),
    ):
        check_axes(made)


def test_file_is_a_picture(run, tmp_path):
    figure = figures.accuracies_figure(run[1][1].history)
    (path,) = style.save_all({"accuracy/all": figure}, tmp_path)
    assert path.name == "accuracy_all.png"
    assert picture(path).shape[:2] == tuple(round(inches * 130) for inches in figure.get_size_inches()[::-1])


@pytest.mark.parametrize("k", [100, 1000])
def test_many_classes_become_bands(k):
    generator = torch.Generator().manual_seed(0)
    history = [{"epoch": e, "nc/train/wm_cosine_per_class": torch.rand(k, generator=generator)} for e in range(5)]
    axes = figures.cosines_figure(history).axes[0]
    assert len(axes.lines) == 1
    assert len(axes.collections) == 3
    median = np.median(np.array([record["nc/train/wm_cosine_per_class"] for record in history]), axis=1)
    np.testing.assert_allclose(axes.lines[0].get_ydata(), median)


def test_logarithmic_axis_only_where_it_helps():
    def scale(values, log=True):
        figure = style.Figure()
        axes = figure.subplots()
        history = [{"epoch": e, "nc/train/x": value} for e, value in enumerate(values)]
        style.plot_metric(axes, history, ["nc/train/x"], "x", "dimensionless", log)
        return axes.get_yscale()

    assert scale([1.0, 0.1, 0.01]) == "log"
    assert scale([1.0, 0.9]) == "linear"
    assert scale([1.0, 0.0]) == "linear"
    assert scale([1.0, float("nan"), 0.01]) == "log"
    assert scale([1.0, 0.01], log=False) == "linear"


def test_ticks_of_a_logarithmic_axis_are_numbers():
    def ticks(low, high):
        axes = style.Figure().subplots()
        axes.set_ylim(low, high)
        logarithmic(axes)
        shown = [label for label in axes.yaxis.get_ticklabels() if low <= label.get_position()[1] <= high]
        return [label.get_text() for label in shown]

    assert ticks(1e-6, 1) == ["10⁻⁶", "10⁻⁵", "10⁻⁴", "0.001", "0.01", "0.1", "1"]
    assert ticks(0.01, 0.3) == ["0.01", "0.02", "0.05", "0.1", "0.2"]
    assert ticks(0.9e-5, 1.1e-5) == ["9 · 10⁻⁶", "9.5 · 10⁻⁶", "10⁻⁵", "1.05 · 10⁻⁵", "1.1 · 10⁻⁵"]


def test_k_minus_one_and_values_at_collapse_are_named(run):
    spectrum = run[1][3]
    figure = figures.spectrum_figure(spectrum.latest, num_classes=spectrum.num_classes)
    for axes in figure.axes:
        (dotted,) = [line for line in axes.lines if line.get_label() == "k − 1 = 3"]
        assert list(dotted.get_xdata()) == [3, 3]
        assert "k − 1 = 3" in [text.get_text() for text in axes.get_legend().get_texts()]
    (axes,) = number_figures(run[1][1].history)["wm_cosine"].axes
    assert [line.get_ydata()[0] for line in axes.lines if line.get_label() == "at collapse: 1"] == [1]


def test_garbage_is_collected_again(tmp_path):
    seen = []

    def failing():
        seen.append(gc.isenabled())
        raise ValueError("no figure")

    with pytest.raises(RuntimeError, match="no figure"):
        style.save_all({"a": failing}, tmp_path)
    assert (seen, gc.isenabled()) == ([False], True)
