"""Bands of standard errors: where they lie, and where they are left out."""

import math

import pytest
from matplotlib.figure import Figure

from nc_callbacks.figures.bands import band_of
from nc_callbacks.figures.each import number_figure
from nc_callbacks.metrics import BAND, METRICS, LogKey

KEY, ERROR = LogKey("nc1_corrected", "train"), LogKey("nc1_error", "train")


def looks(values, errors):
    return [
        {"epoch": epoch, str(KEY): value, str(ERROR): error}
        for epoch, (value, error) in enumerate(zip(values, errors, strict=True))
    ]


def extent(figure: Figure):
    [band] = figure.axes[0].collections
    return sorted({(round(x), round(y, 6)) for x, y in band.get_paths()[0].vertices})


def test_a_band_is_as_wide_as_the_errors():
    figure = number_figure(looks([1.0, 0.8], [0.1, 0.05]), [KEY])
    assert extent(figure) == [(1, 0.804), (1, 1.196), (2, 0.702), (2, 0.898)]
    assert "± 1.96 standard errors" in figure.axes[0].get_title()


def test_a_band_that_reaches_zero_leaves_a_logarithmic_axis_as_it_is():
    axes = number_figure(looks([1.0, 0.1], [0.1, 0.5]), [KEY]).axes[0]
    assert axes.get_yscale() == "log"
    assert axes.get_ylim()[0] == pytest.approx(0.05)


def test_what_has_no_standard_error_has_no_band():
    history = [{"epoch": 0, "nc/train/nc1": 1.0, "nc/train/nc1_error": 0.1}]
    assert not number_figure(history, [LogKey("nc1", "train")]).axes[0].collections
    assert band_of([{"epoch": 0, str(KEY): 1.0}], KEY, "black") == []


def test_what_is_not_known_leaves_the_band_open():
    [band] = band_of(looks([1.0, math.nan], [0.1, math.nan]), KEY, "black")
    assert math.isnan(band.low[1])


def test_each_error_is_of_a_metric_in_the_registry():
    pairs = {name: metric.error for name, metric in METRICS.items() if metric.error}
    assert pairs == {
        "nc1_corrected": "nc1_error",
        "nc1_cdnv_corrected": "nc1_cdnv_error",
        "wm_cosine_corrected": "wm_cosine_error",
    }
    assert all(METRICS[error].layers == METRICS[name].layers for name, error in pairs.items())
    assert BAND == 1.96
