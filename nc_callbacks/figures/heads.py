"""Figures of heads from moments beside trained ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nc_callbacks.figures.style import label_axes

Row = Mapping[str, Any]

TRAINED = ("LWM", "WFS", "WICM", "logistic")

DRAWN = {"CM": ("#d1702a", "centred means"), "whitened": ("#b0142f", "whitened means")}


def heads_figure(cells: Sequence[Row]) -> Figure:
    """Accuracy of heads without training against that of the best trained head, a point a cell, a panel an activation.

    Args:
        cells: With ``data``, ``activation``, ``variance``, ``samples``, ``method`` and ``accuracy``.
    """
    by_cell: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in cells:
        cell = (row["activation"], row["data"], row["variance"], row["samples"])
        by_cell.setdefault(cell, {})[row["method"]] = row["accuracy"]
    activations = list(dict.fromkeys(cell[0] for cell in by_cell))
    figure = Figure(figsize=(4.2 * len(activations), 4.4), layout="constrained")
    panels = figure.subplots(1, len(activations), squeeze=False, sharex=True, sharey=True)[0]
    for axes, activation in zip(panels, activations, strict=True):
        own = [of for cell, of in by_cell.items() if cell[0] == activation]
        best = [max(of[method] for method in TRAINED if method in of) for of in own]
        axes.axline((0, 0), slope=1, color="0.4", lw=1)
        for (method, (color, label)), marker in zip(DRAWN.items(), "so", strict=True):
            axes.plot(best, [of[method] for of in own], marker, color=color, label=label, ms=6, alpha=0.85)
        name = {"relu": "ReLU"}.get(activation, activation)
        label_axes(axes, f"{name} network", "accuracy without training", "accuracy of the best trained head")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.02)
        axes.set_box_aspect(1)
        axes.text(0.01, 0.05, "as good as trained", rotation=45, rotation_mode="anchor", fontsize=8, color="0.4")
    panels[0].legend(frameon=False, fontsize=9, loc="upper left")
    return figure


def starts_figure(curves: Sequence[Row]) -> Figure:
    """Test accuracy over optimiser steps from three starts, mean over seeds, a panel a data set and activation.

    Of each the largest number of samples and the middle variance are drawn.

    Args:
        curves: With ``data``, ``activation``, ``variance``, ``samples``, ``method``, ``seed``, ``step``, ``accuracy``.
    """
    panels = list(dict.fromkeys((row["data"], row["activation"]) for row in curves))
    columns = min(len(panels), 2)
    figure = Figure(figsize=(4.4 * columns, 3.0 * -(-len(panels) // columns)), layout="constrained")
    for axes, (data, activation) in zip(
        figure.subplots(-(-len(panels) // columns), columns, squeeze=False).flat, panels, strict=False
    ):
        own = [row for row in curves if (row["data"], row["activation"]) == (data, activation)]
        variances = sorted({row["variance"] for row in own})
        variance, samples = variances[len(variances) // 2], max(row["samples"] for row in own)
        own = [row for row in own if (row["variance"], row["samples"]) == (variance, samples)]
        for method, label, line in (
            ("WFS", "random", {"color": "#4c8c4a", "linestyle": "-."}),
            ("WICM", "centred means", {"color": "#d1702a", "linestyle": "--"}),
            ("whitened start", "whitened means", {"color": "#b0142f", "linestyle": "-"}),
        ):
            rows = [row for row in own if row["method"] == method]
            steps = sorted({row["step"] for row in rows})
            means = [np.mean([row["accuracy"] for row in rows if row["step"] == step]) for step in steps]
            axes.plot(steps, means, label=f"start: {label}", lw=1.8, **line)
        name = {"relu": "ReLU"}.get(activation, activation)
        title = f"{data.replace('_', ' ')}, {name}, σ² = {variance:g}, n = {samples:,}"
        label_axes(axes, title, "test accuracy", "optimiser steps")
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xlim(left=0)
    for axes in figure.axes[len(panels) :]:
        axes.remove()
    figure.axes[0].legend(frameon=False, fontsize=8, loc="lower right")
    return figure
