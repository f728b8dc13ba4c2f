"""The summary figure: every condition that was measured, beside its value at collapse."""

import numpy as np
import pytest

from nc_callbacks import figures
from nc_callbacks.figures.summary import joined, save_summary_figures
from tests.callbacks.common import Classifier, K, loader
from tests.figures.common import drawn, picture


@pytest.fixture(scope="module")
def looks(tmp_path_factory):
    callbacks = drawn(tmp_path_factory.mktemp("figures"), Classifier(), loader(1), 3)[1]
    return [(callback.history, callback.latest, callback.prefix) for callback in callbacks]


def by_title(figure):
    return {axes.get_title().split("\n")[0].partition(":")[0]: axes for axes in figure.axes if axes.get_title()}


def test_panels_are_the_histories(looks):
    figure = figures.summary_figure(looks)
    panels = by_title(figure)
    assert {"NC1", "NC2", "NC3", "NC4", "Accuracy", "W–M̄", "SQI", "Spectrum"} <= set(panels)
    history = joined(found for found, _, _ in looks)
    first, last = panels["NC3"].lines[:2]
    assert list(first.get_ydata()) == [record["nc/train/nc3"] for record in history]
    assert list(last.get_ydata()) == [record["nc/val/nc3"] for record in history]
    assert first.get_linewidth() > last.get_linewidth()
    spread = panels["SQI"].lines[0].get_ydata()
    assert list(spread) == [abs(record["nc/train/sqi_epsilon_rel_std"]) for record in history]


def test_values_at_collapse_are_dotted(looks):
    panels = by_title(figures.summary_figure(looks))
    for name, ideal in (("Accuracy", 1), ("W–M̄", 1), ("Spectrum", K - 1)):
        (dotted,) = [line for line in panels[name].lines if line.get_linestyle() == ":" and line.get_color() == "0.35"]
        assert list(dotted.get_ydata()) == [ideal, ideal], name
        assert panels[name].get_ylim()[0] < ideal < panels[name].get_ylim()[1]


def test_the_first_epoch_without_error_is_a_line(looks):
    history = [{"epoch": e, "step": e, "nc/train/accuracy": a, "nc/train/nc1": 1.0} for e, a in enumerate([0.9, 1, 1])]
    figure = figures.summary_figure([(history, history[-1], "nc")])
    assert all(any(list(line.get_xdata()) == [2, 2] for line in axes.lines) for axes in figure.axes if axes.axison)
    assert "no training error from epoch 2 on" in [text.get_text() for text in figure.legends[0].get_texts()]
    history = [{**record, "nc/train/accuracy": np.nan} for record in history]
    figure = figures.summary_figure([(history, history[-1], "nc")])
    assert not any("no training error" in text.get_text() for text in figure.legends[0].get_texts())


def test_few_values_make_few_panels(looks):
    history = [{"epoch": 0, "step": 1, "nc/val/nc1": 0.5}]
    figure = figures.summary_figure([(history, history[-1], "nc")])
    assert [axes.get_title() for axes in figure.axes if axes.axison] == ["NC1: variability within classes"]
    assert list(figure.axes[0].lines[0].get_ydata()) == [0.5]


def test_file_is_a_picture(looks, tmp_path):
    (path,) = save_summary_figures(looks, tmp_path)
    assert path.name == "summary.png"
    picture(path)
