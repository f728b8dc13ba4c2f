"""Metrics over the depth of a network, a curve an epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nc_callbacks.figures.style import Makers, Record, keys_of, label_axes, named
from nc_callbacks.figures.ticks import logarithmic
from nc_callbacks.metrics import METRICS, LogKey
from nc_callbacks.metrics.depth import OF_DEPTH, over_depth, tunnel_of

EPOCHS = 6
"""Curves at most, evenly spaced in the logarithm of the epoch."""

SHADE = "#ece7dc"


def makers_of_depth(history: Sequence[Record], prefix: str = "nc", name: str = "depth") -> Makers:
    """What makes a figure over depth for each split and loader with two layers besides the classifier's input.

    Args:
        history: A callback's history.
        prefix: First part of the log keys.
        name: First part of the figures' names.
    """
    figures: Makers = {}
    for metric in OF_DEPTH:
        layers: dict[LogKey, list[str]] = {}
        for key in keys_of(history[-1:], metric, prefix):
            layers.setdefault(LogKey("", key.split, "", key.loader, prefix), []).append(key.layer)
        for place, found in layers.items():
            if len(found) > 2 and named(name, place) not in figures:
                figures[named(name, place)] = partial(depth_figure, history, [x for x in found if x], place)
    return figures


def depth_figure(history: Sequence[Record], layers: Sequence[str], place: LogKey) -> Figure:
    """Each metric over the layers, a curve an epoch; the tunnel of the last look, if there is one, is shaded.

    Args:
        history: A callback's history.
        layers: Further layers, in order.
        place: Prefix, split and loader.
    """
    records = [record for record in history if _has(record, layers, place)]
    shown = _chosen(records)
    names = [name for name in OF_DEPTH if any(str(key) in shown[-1] for key in over_depth(layers, name, place))]
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(max(5.2, 4.6 * columns), 3.9 * rows + 0.5), layout="constrained")
    tunnel = tunnel_of(shown[-1], layers, place)
    grid = list(np.atleast_1d(figure.subplots(rows, columns)).flat)
    for axes, name in zip(grid, names, strict=False):
        _plot(axes, shown, over_depth(layers, name, place), tunnel)
    for axes in grid[len(names) :]:
        axes.set_axis_off()
    text = f"Over depth, {place.title}"
    if tunnel is not None:
        by, start = tunnel
        text += (
            f"; shaded: the tunnel, from {layers[start]} on the accuracy of the {METRICS[by].label} rises by no more "
            f"than a point (epoch {shown[-1]['epoch'] + 1})"
        )
    figure.suptitle(text, fontsize=10)
    figure.legend(
        *grid[0].get_legend_handles_labels(), loc="outside lower left", ncols=EPOCHS, frameon=False, fontsize=8
    )
    return figure


def _has(record: Record, layers: Sequence[str], place: LogKey) -> bool:
    return any(str(key) in record for name in OF_DEPTH for key in over_depth(layers, name, place)[:-1])


def _chosen(records: Sequence[Record]) -> list[Record]:
    """Some of many looks: the first, the last, and between them ever fewer."""
    wanted = np.geomspace(1, len(records), min(EPOCHS, len(records))).round().astype(int) - 1
    return [records[row] for row in dict.fromkeys(wanted.tolist())]


def _plot(axes: Axes, records: Sequence[Record], keys: Sequence[LogKey], tunnel: tuple[str, int] | None) -> None:
    metric = METRICS[keys[0].name]
    colours = colormaps["viridis"](np.linspace(0.85, 0.0, len(records)))
    drawn: list[float] = []
    for record, colour in zip(records, colours, strict=True):
        values = [record.get(str(key), math.nan) for key in keys]
        drawn += [value for value in values if math.isfinite(value)]
        axes.plot(
            range(len(keys)), values, marker="o", ms=3.5, lw=1.6, color=colour, label=f"epoch {record['epoch'] + 1}"
        )
    if tunnel is not None:
        axes.axvspan(tunnel[1], len(keys) - 1, color=SHADE, zorder=0, lw=0)
    if metric.log and drawn and min(drawn) > 0 and max(drawn) > 3 * min(drawn):
        logarithmic(axes)
    label_axes(axes, metric.title, metric.unit, horizontal="")
    axes.set_xticks(range(len(keys)), _short([key.layer for key in keys]), rotation=60, ha="right", fontsize=7.5)


def _short(layers: Sequence[str]) -> list[str]:
    """Names without the parts that all share at the front.

    Example:
        >>> _short(["network.backbone.0", "network.backbone.1", ""])
        ['0', '1', "classifier's input"]
    """
    parts = [layer.split(".") for layer in layers if layer]
    common = 0
    while all(len(part) > common + 1 and part[common] == parts[0][common] for part in parts):
        common += 1
    return [".".join(layer.split(".")[common:]) or "classifier's input" for layer in layers]
