"""What a reader sees of figures: titles that name the data, whole legends, colours and numbers that can be read."""

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nc_callbacks import NeuralCollapse, ReportPage
from nc_callbacks.figures.each import makers_of_numbers, matrix_figures, number_figure, plot_pairs, vector_figures
from nc_callbacks.figures.style import save_all
from nc_callbacks.figures.summary import summary_figure
from nc_callbacks.figures.ticks import plain
from nc_callbacks.figures.titles import of_data
from nc_callbacks.metrics import METRICS, LogKey
from tests.callbacks.common import Classifier, loader, trainer

COSINES = METRICS["class_mean_cosines"]


def cosines(k, seed=0):
    vectors = torch.nn.functional.normalize(torch.randn(k, 64, generator=torch.Generator().manual_seed(seed)), dim=1)
    return vectors @ vectors.T


def saved_titles(figure, folder, monkeypatch, name):
    monkeypatch.setattr(Figure, "savefig", lambda *given, **named: None)
    with of_data(name):
        save_all({"a": figure}, folder)
    return figure.get_suptitle()


def test_titles_name_the_data(tmp_path, monkeypatch):
    history = [{"epoch": epoch, "nc/train/nc1": 1.0 - epoch / 10} for epoch in range(3)]
    made = number_figure(history, [LogKey("nc1", "train")])
    assert saved_titles(made, tmp_path, monkeypatch, "digits") == "digits"
    # Once, also where one figure is saved twice.
    assert saved_titles(made, tmp_path, monkeypatch, "digits") == "digits"
    summary = summary_figure([(history, history[-1], "nc")])
    assert saved_titles(summary, tmp_path, monkeypatch, "digits") == "digits: Neural collapse after 3 epochs"
    unknown = number_figure(history, [LogKey("nc1", "train")])
    assert saved_titles(unknown, tmp_path, monkeypatch, "") == ""


class Leaves(torch.utils.data.TensorDataset):
    pass


@pytest.mark.parametrize("by", ["callback", "page"])
def test_figures_of_any_trainer_name_its_data(tmp_path, monkeypatch, by):
    titles = {}
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, path, **settings: titles.update({path.stem: figure.get_suptitle()})
    )
    leaves = torch.utils.data.DataLoader(Leaves(*loader().dataset.tensors), batch_size=8)
    callbacks = [NeuralCollapse(figures=tmp_path if by == "callback" else False)]
    callbacks += [ReportPage(tmp_path, figures="all")] if by == "page" else []
    trainer(*callbacks, max_epochs=1).fit(Classifier(), leaves)
    assert titles["nc1"] == "Leaves"
    assert titles["collapse"] == "Leaves: train"
    assert ("summary" in titles) is (by == "page")
    assert all(title.startswith("Leaves") for title in titles.values())


@pytest.mark.parametrize("k", [10, 13, 200])
def test_colours_span_what_the_pairs_have(k):
    matrix = cosines(k)
    axes = Figure().subplots()
    plot_pairs(axes, matrix, COSINES)
    low, high = axes.images[0].get_clim()
    off = np.abs(matrix.numpy()[~np.eye(k, dtype=bool)])
    if k <= 12:
        assert (low, high) == (-1, 1)
    else:
        assert low == -high
        assert 0.98 <= (off <= high).mean() <= 1
        assert high < 0.7


def test_numbers_in_cells_have_a_minus_and_no_negative_zero():
    matrix = torch.tensor([[1.0, -0.004], [-0.25, 1.0]])
    axes = Figure().subplots()
    plot_pairs(axes, matrix, COSINES)
    assert [text.get_text() for text in axes.texts] == ["1.00", "0.00", "−0.25", "1.00"]


@pytest.mark.parametrize("absent", [[], [3, 7]])
@pytest.mark.parametrize("k", [10, 100])
def test_legends_are_whole(k, absent):
    vector = torch.linspace(0.1, 0.9, k)
    vector[absent] = torch.nan
    history = [{"epoch": epoch, "nc/train/wm_cosine_per_class": vector} for epoch in range(3)]
    (figure,) = vector_figures(history).values()
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    box = axes.get_legend().get_window_extent()
    assert figure.bbox.x0 <= box.x0
    assert box.x1 <= figure.bbox.x1
    assert figure.bbox.y0 <= box.y0


@pytest.mark.parametrize(
    ("top", "expected"),
    [(8e-4, ["0", "4 · 10⁻⁴", "8 · 10⁻⁴"]), (0.8, ["0.0", "0.4", "0.8"]), (4e5, ["0", "2 · 10⁵", "4 · 10⁵"])],
)
def test_ticks_are_whole_numbers(top, expected):
    axes = Figure().subplots()
    axes.set_ylim(0, top)
    axes.set_yticks([0, top / 2, top])
    plain(axes)
    FigureCanvasAgg(axes.figure).draw()
    assert [text.get_text() for text in axes.get_yticklabels()] == expected
    assert axes.yaxis.get_offset_text().get_text() == ""


def test_a_value_at_collapse_that_the_legend_names_is_in_sight():
    history = [{"epoch": epoch, "nc/train/tpt": 0.0, "nc/train/nc2_uniformity": -0.35} for epoch in range(3)]
    made = {name: make() for name, make in makers_of_numbers(history, num_classes=10).items()}
    for name, ideal in (("tpt", 1), ("nc2_uniformity", -0.5 * np.log(20 / 9))):
        (axes,) = made[name].axes
        low, high = axes.get_ylim()
        assert axes.lines[-1].get_ydata()[0] == pytest.approx(ideal)
        assert low < ideal < high


def test_the_effective_rank_at_collapse_is_no_more_than_the_features():
    record = {
        "epoch": 0,
        "nc/train/spectrum_effective_rank": 20.0,
        "nc/train/counts": torch.ones(1000),
        "nc/train/explained_variance": torch.full((64,), 1 / 64),
    }
    figure = summary_figure([([record], record, "nc")])
    axes = next(axes for axes in figure.axes if axes.get_title().startswith("Spectrum"))
    assert axes.lines[-1].get_ydata()[0] == 64


def test_matrices_are_named_with_their_split():
    (figure,) = matrix_figures({"nc/val/class_mean_cosines": cosines(4)}).values()
    assert figure.axes[0].get_title() == "cos(μ_c, μ_c'), val\nat collapse −0.333 off the diagonal"
