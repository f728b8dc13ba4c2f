"""A callback's results as a table, as a figure, and in a line."""

import sys
import types

import matplotlib.figure
import pytest
import torch

from nc_callbacks import NeuralCollapse, WeightMeanAlignment
from tests.callbacks.common import Classifier, K, loader, trainer


@pytest.fixture(scope="module")
def fitted():
    callbacks = [NeuralCollapse(splits=["train", "val"], layers=["body.4"]), WeightMeanAlignment()]
    trainer(*callbacks, max_epochs=3).fit(Classifier(), loader(), loader(1))
    return callbacks


@pytest.fixture
def pandas(monkeypatch):
    """Whether pandas is installed or not: what it is given."""
    module = types.ModuleType("pandas")
    module.DataFrame = list
    monkeypatch.setitem(sys.modules, "pandas", module)


def test_frame_has_a_row_a_look(fitted, pandas):
    collapse, alignment = fitted
    rows = collapse.to_frame()
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert [row["nc/val/nc1"] for row in rows] == [record["nc/val/nc1"] for record in collapse.history]
    assert not any(isinstance(value, torch.Tensor) for row in rows for value in row.values())
    rows = alignment.to_frame(by_class=True)
    assert [(row["epoch"], row["class"]) for row in rows] == [(epoch, c) for epoch in range(3) for c in range(K)]
    column = [row["nc/train/wm_cosine_per_class"] for row in rows[K : 2 * K]]
    assert column == alignment.history[1]["nc/train/wm_cosine_per_class"].tolist()
    assert NeuralCollapse().to_frame() == NeuralCollapse().to_frame(by_class=True) == []


def test_without_pandas(fitted, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match="to_frame needs pandas"):
        fitted[0].to_frame()


def test_plot_of_a_number(fitted):
    collapse = fitted[0]
    figure, axes = collapse.plot("nc1")
    assert isinstance(figure, matplotlib.figure.Figure)
    # Two splits at two layers.
    assert len(axes.lines) == 4
    assert list(axes.lines[0].get_ydata()) == [record["nc/train/nc1"] for record in collapse.history]
    figure, axes = collapse.plot("nc/val/nc1")
    assert [list(line.get_ydata()) for line in axes.lines] == [[r["nc/val/nc1"] for r in collapse.history]]
    assert axes.get_title().endswith(", val")


def test_plot_on_axes_that_are_given(fitted):
    given = matplotlib.figure.Figure()
    axes = given.subplots(1, 2)[1]
    assert fitted[0].plot("nc3", ax=axes) == (given, axes)
    assert axes.lines


def test_plot_of_vectors_and_matrices(fitted):
    collapse, alignment = fitted
    assert len(alignment.plot("wm_cosine_per_class")[1].lines) == K
    assert collapse.plot("class_mean_cosines")[1].images[0].get_array().shape == (K, K)


def test_plot_of_the_summary(fitted):
    figure, panels = fitted[0].plot()
    assert {axes.figure for axes in panels} == {figure}
    assert all(axes.has_data() for axes in panels)  # a place of the grid is left empty
    assert "NC1: variability within classes" in [axes.get_title() for axes in panels]
    with pytest.raises(ValueError, match="panels of its own"):
        fitted[0].plot(ax=panels[0])


def test_what_cannot_be_drawn(fitted):
    with pytest.raises(ValueError, match=r"got 'nc_1'\. Did you mean 'nc1'\?"):
        fitted[0].plot("nc_1")
    with pytest.raises(ValueError, match="NeuralCollapse has no look of a fit yet"):
        NeuralCollapse().plot("nc1")


def test_repr_is_a_line(fitted):
    assert repr(fitted[0]) == f"NeuralCollapse(3 looks, the last after epoch 3, classifier 'head' of {K} classes)"
    assert repr(WeightMeanAlignment()) == "WeightMeanAlignment(0 looks)"
