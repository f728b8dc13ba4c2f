"""Figures of transfer: what is drawn is what the rows say."""

import numpy as np
import pytest

from nc_callbacks.figures.transfer import accuracy_figure, ranking_figure, steps_figure

METHODS = ("CM", "LWM", "WFS", "WICM")
VARIANCES = (0, 0.1, 0.5)


def test_accuracy_over_variance_has_a_line_a_method_with_its_spread():
    rows = [
        {"variance": v, "method": m, "mean": 1 - v - 0.01 * i, "std": 0.02}
        for v in reversed(VARIANCES)
        for i, m in enumerate(METHODS)
    ]
    axes = accuracy_figure(rows).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(METHODS)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "0.1", "0.5"]
    for i, (line, _, (spread,)) in enumerate(axes.containers):
        assert list(line.get_ydata()) == pytest.approx([1 - v - 0.01 * i for v in VARIANCES])
        bars = spread.get_segments()
        assert [float(bar[1, 1] - bar[0, 1]) for bar in bars] == pytest.approx([0.04] * 3)
    assert axes.get_ylabel()
    assert axes.get_xlabel()


def test_accuracy_over_steps_has_a_panel_a_variance_and_a_level_line_without_training():
    rows = [
        {"method": m, "variance": v, "seed": s, "step": step, "accuracy": 0.1 * s + 0.01 * step + v}
        for m in METHODS
        for v in VARIANCES
        for s in (0, 1)
        for step in ((0,) if m == "CM" else (0, 1, 10))
    ]
    figure = steps_figure(rows, [0, 0.5])
    assert [axes.get_title() for axes in figure.axes] == ["σ² = 0", "σ² = 0.5"]
    untrained, trained = figure.axes[1].lines[0], figure.axes[1].lines[3]
    assert untrained.get_xdata().tolist() == [0, 10]
    np.testing.assert_allclose(untrained.get_ydata(), [0.55, 0.55])
    np.testing.assert_allclose(trained.get_ydata(), [0.55, 0.56, 0.65])


def test_ranking_has_a_point_a_source_and_a_panel_a_target():
    rows = [{"target": t, "source": s, "x": i / 10, "y": i / 20} for t in "ab" for i, s in enumerate("pqrst")]
    figure = ranking_figure(rows, "x", "y", "score")
    assert [axes.get_title() for axes in figure.axes] == ["a", "b"]
    for axes in figure.axes:
        points = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines]
        assert points == [(i / 10, i / 20) for i in range(5)]
        assert len({(line.get_marker(), line.get_color()) for line in axes.lines}) == 5
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list("pqrst")
