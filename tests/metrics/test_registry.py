"""The registry names each metric once, and all that the callbacks log and keep."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from nc_callbacks import FeatureSpectrum, NeuralCollapse, QuasiInterpolation, WeightMeanAlignment
from nc_callbacks.metrics import METRICS, LogKey, Metric, metric_of, register, sections, vector_panels
from tests.callbacks.common import Classifier, loader, trainer

SCALARS = {name for name, metric in METRICS.items() if metric.axis == "scalar"}


ON_DEMAND = {
    NeuralCollapse: {
        "ood_loader": loader(3),
        "ood_scores": True,
        "mse_weight_decay": 0.1,
        "unbalanced": True,
        "standard_errors": True,
        "lda_accuracy": True,
    },
    WeightMeanAlignment: {"a2_residual": True, "implicit": "full", "standard_errors": True},
    QuasiInterpolation: {"samples": [0, 1]},
    FeatureSpectrum: {"by_class": True},
}


def fitted(on_demand=False, **settings):
    callbacks = [kind(**(given if on_demand else {}), **settings) for kind, given in ON_DEMAND.items()]
    fitting = trainer(*callbacks)
    # Two classes are rare.
    unbalanced = (80, 60, 16, 12)
    fitting.fit(Classifier(), loader(counts=unbalanced), loader(1, unbalanced))
    return fitting, callbacks


def logged(**settings):
    return {key for key in fitted(**settings)[0].callback_metrics if key.startswith("nc/")}


@pytest.fixture(scope="module")
def everything():
    return fitted(on_demand=True, splits=["train", "val"], layers=["body.0", "body.2", "body.4"])[1]


def test_metrics_are_those_that_are_logged():
    names = {LogKey.parse(key).name for key in logged()}
    assert names == {name for name in SCALARS if not METRICS[name].on_demand}


def test_rows_say_what_is_found(everything):
    """Which callback, on which splits, at which layers, along which axis, within which range."""
    sizes = {"scalar": 0, "class": 1, "direction": 1, "sample": 2, "class × class": 2}
    found = {}
    for callback in everything:
        for text, value in callback.latest.items():
            key = LogKey.parse(text)
            if key.is_ours:
                found.setdefault(key.name, []).append((callback, key, value))
    assert set(found) == set(METRICS)
    for name, entries in found.items():
        metric = METRICS[name]
        assert metric.callback in {type(callback).__name__ for callback, _, _ in entries}
        assert any(key.layer for _, key, _ in entries) == metric.layers, name
        assert {key.split for _, key, _ in entries} == {"train", "val"} & set(metric.splits), name
        for _, _, value in entries:
            assert (value.ndim if isinstance(value, Tensor) else 0) == sizes[metric.axis], name
            if metric.axis != "sample":
                low, high = metric.range
                # What is not known, of few samples, is NaN.
                values = np.asarray(value, dtype=float)
                known = values[~np.isnan(values)]
                assert ((low - 1e-6 <= known) & (known <= high + 1e-6)).all(), name


def test_entries_of_an_axis_are_as_many_as_it_has(everything):
    length = {"class": 4, "direction": 8, "class × class": 4, "sample": 2}
    for callback in everything:
        for text, value in callback.latest.items():
            key = LogKey.parse(text)
            if isinstance(value, Tensor) and not key.layer:
                assert len(value) == length[METRICS[key.name].axis], text


def test_values_at_collapse_lie_in_the_range_and_at_the_end_that_is_said():
    for name, metric in METRICS.items():
        value = metric.value_at_collapse(10, 64)
        low, high = metric.range
        assert (value is None) == (metric.toward == "none"), name
        if value is not None:
            assert {"down": value == low, "up": value == high, "ideal": low <= value <= high}[metric.toward], name
        assert callable(metric.ideal) == bool(metric.ideal_text), name


def test_values_at_collapse_of_a_simplex():
    # k = 5 unit vectors with cosines −1/4 are √(2 + 2/4) apart.
    assert METRICS["class_mean_cosines"].value_at_collapse(5, 8) == -0.25
    assert METRICS["nc2_uniformity"].value_at_collapse(5, 8) == pytest.approx(-math.log(math.sqrt(2.5)))
    assert METRICS["spectrum_effective_rank"].value_at_collapse(5, 8) == 4
    assert METRICS["wm_cosine"].value_at_collapse(5, 8) == 1
    assert METRICS["mu1"].value_at_collapse(5, 8) is None


def test_catalogue_is_that_of_before():
    """Order and text of the page and of the workspace."""
    found = [
        {
            "title": section.title,
            "text": section.text,
            "panels": [
                {
                    "title": panel.title,
                    "unit": panel.unit,
                    "log": panel.log,
                    "metrics": [[metric.name, metric.label, bool(metric.on_demand)] for metric in panel.metrics],
                }
                for panel in section.panels
            ],
        }
        for section in sections()
    ]
    assert found == json.loads(Path(__file__).with_name("catalogue.json").read_text(encoding="utf-8"))


def test_each_number_is_in_one_panel_and_a_panel_has_one_unit():
    listed = [metric.name for section in sections() for metric in section.metrics]
    assert sorted(listed) == sorted(SCALARS)
    for panel in (*(panel for section in sections() for panel in section.panels), *vector_panels()):
        assert len({(metric.unit, metric.log, metric.axis) for metric in panel.metrics}) == 1, panel.title


def test_every_row_has_what_tables_and_figures_print():
    for name, metric in METRICS.items():
        assert metric.definition, name
        assert metric.title, name
        assert metric.source or metric.axis != "scalar", name


def test_two_metrics_of_one_name_are_refused():
    with pytest.raises(ValueError, match="'nc1' is there already, of NeuralCollapse"):
        register(Metric("nc1", "Mine", "Mine"))
    assert METRICS["nc1"].section == "NC1"


def test_a_name_without_a_row_is_a_number_of_its_own():
    assert metric_of("mine") == Metric("mine", label="mine", title="mine")
