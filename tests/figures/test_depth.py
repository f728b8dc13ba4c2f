"""Metrics over depth: where the tunnel begins, and what figure and page show of it."""

import math

import pytest

from nc_callbacks.figures.depth import depth_figure, makers_of_depth
from nc_callbacks.metrics import LogKey
from nc_callbacks.metrics.depth import tunnel_of, tunnel_start
from nc_callbacks.report.depth import depth_of
from nc_callbacks.report.run import Run

LAYERS = ["blocks.2", "blocks.10", "body"]
PLACE = LogKey("", "train")


@pytest.mark.parametrize(
    ("accuracies", "start"),
    [
        ([0.5, 0.7, 0.9, 0.95, 0.955, 0.951], 3),
        ([0.5, 0.7, 0.9], None),
        ([0.9, 0.9, 0.9], 0),
        # What is worse later is no improvement, and what comes back is none either.
        ([0.5, 0.9, 0.6, 0.9], 1),
        ([0.5, 0.9, 0.6, 0.92], None),
        ([0.5, math.nan, 0.9, 0.9], 2),
        ([0.9, math.nan, math.nan], None),
        ([math.nan] * 3, None),
        ([0.7], None),
        ([], None),
    ],
)
def test_a_tunnel_begins_where_nothing_later_is_better(accuracies, start):
    assert tunnel_start(accuracies) == start


def test_tolerance_is_what_does_not_count():
    assert tunnel_start([0.5, 0.52, 0.53], tolerance=0.05) == 0
    # By no more than the tolerance, in numbers that binary fractions hold.
    assert tunnel_start([0.5, 0.75], tolerance=0.25) == 0
    assert tunnel_start([0.9, math.nan, 0.9]) == 0
    assert tunnel_start([0.5, 0.505, 0.51, 0.52], tolerance=0) is None


def looks(epochs=12, name="ncc_accuracy", values=(0.5, 0.9, 0.905, 0.901)):
    """The classifier's input first, as callbacks keep them."""
    keys = [str(LogKey(name, "train", layer)) for layer in ("", *LAYERS)]
    of_nc1 = [str(LogKey("nc1", "train", layer)) for layer in ("", *LAYERS)]
    found = (values[-1], *values[:-1])
    return [
        {
            "epoch": epoch,
            **dict(zip(keys, found, strict=True)),
            **{key: 2.0**-epoch / 3**i for i, key in enumerate(of_nc1)},
        }
        for epoch in range(epochs)
    ]


def test_the_whitened_means_come_first():
    values = {str(LogKey("ncc_accuracy", "train", layer)): 0.5 for layer in (*LAYERS, "")}
    assert tunnel_of(values, LAYERS, PLACE) == ("ncc_accuracy", 0)
    rising = zip((*LAYERS, ""), (0.1, 0.3, 0.6, 0.6), strict=True)
    values |= {str(LogKey("lda_accuracy", "train", layer)): value for layer, value in rising}
    assert tunnel_of(values, LAYERS, PLACE) == ("lda_accuracy", 2)
    assert tunnel_of({}, LAYERS, PLACE) is None


def test_figure_has_a_curve_an_epoch_and_the_tunnel():
    history = looks()
    figure = depth_figure(history, LAYERS, PLACE)
    nc1, accuracy = figure.axes
    assert [line.get_label() for line in nc1.lines] == [f"epoch {epoch}" for epoch in (1, 2, 3, 4, 7, 12)]
    assert list(nc1.lines[1].get_ydata()) == pytest.approx([1 / 6, 1 / 18, 1 / 54, 1 / 2])
    assert list(accuracy.lines[-1].get_ydata()) == [0.5, 0.9, 0.905, 0.901]
    assert nc1.get_yscale() == "log"
    assert [text.get_text() for text in nc1.get_xticklabels()] == [*LAYERS, "classifier's input"]
    [shade] = list(accuracy.patches)
    # A rectangle, or a polygon in older versions of matplotlib.
    extents = shade.get_path().transformed(shade.get_patch_transform()).get_extents()
    assert (extents.x0, extents.x1) == (1, 3)
    assert "from blocks.10 on" in figure.get_suptitle()


def test_no_tunnel_is_drawn_where_accuracy_rises_to_the_end():
    figure = depth_figure(looks(2, values=(0.5, 0.6, 0.7, 0.8)), LAYERS, PLACE)
    assert not any(axes.patches for axes in figure.axes)
    assert "tunnel" not in figure.get_suptitle()


def test_few_layers_have_no_figure():
    history = [{"epoch": 0, "nc/train/nc1": 1.0, "nc/train/body/nc1": 2.0}]
    assert makers_of_depth(history) == {}
    assert set(makers_of_depth(looks(1))) == {"depth/train"}


def test_page_has_the_layers_in_order_and_the_tunnel(tmp_path):
    import numpy as np

    history, keys = looks(3), sorted(looks(1)[0].keys() - {"epoch"})
    curves = {key: (np.arange(3), np.array([record[key] for record in history])) for key in keys}
    run = Run("run", tmp_path, curves=curves)
    [depth] = depth_of(run)
    assert depth["places"] == [*LAYERS, "classifier's input"]
    assert depth["tunnel"] == {"start": 1, "by": "nearest class mean"}
    assert [metric["name"] for metric in depth["metrics"]] == ["nc1", "ncc_accuracy"]
    del curves["nc/train/body/nc1"], curves["nc/train/blocks.2/nc1"]
    [depth] = depth_of(run)
    assert [metric["name"] for metric in depth["metrics"]] == ["ncc_accuracy"]
