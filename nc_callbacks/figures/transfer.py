"""Figures of transfer: heads on noisy targets (Seddik & Tamaazousti's Fig. 3), and rankings of sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nc_callbacks.figures.style import LINES, add_legend, label_axes

Row = Mapping[str, Any]

METHOD_LINES: tuple[dict[str, Any], ...] = (
    *LINES,
    {"color": "#b0142f", "linestyle": "-", "zorder": 3},
    {"color": "#b0142f", "linestyle": "--", "zorder": 3},
)
"""The paper's four, and two of whitened means."""


def accuracy_figure(rows: Sequence[Row]) -> Figure:
    """Test accuracy over the variance of the noise, a line a method, with the standard deviation over seeds.

    Args:
        rows: With ``variance``, ``method``, ``mean`` and ``std``.
    """
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    plot_accuracies(figure.subplots(), rows, "Heads on noisy targets")
    return figure


def plot_accuracies(axes: Axes, rows: Sequence[Row], title: str) -> None:
    """Draw what `accuracy_figure` shows."""
    variances = sorted({row["variance"] for row in rows})
    methods = dict.fromkeys(row["method"] for row in rows)
    for method, line, marker in zip(methods, METHOD_LINES, "os^DP*", strict=False):
        own = {row["variance"]: row for row in rows if row["method"] == method}
        means, spreads = ([own[variance][key] for variance in variances] for key in ("mean", "std"))
        axes.errorbar(
            range(len(variances)), means, spreads, label=method, lw=1.6, marker=marker, ms=4, capsize=3, **line
        )
    label_axes(axes, title, "test accuracy (share)", "variance σ² of the noise (pixels in [0, 1])")
    axes.set_xticks(range(len(variances)), [f"{variance:g}" for variance in variances])
    add_legend(axes)


def steps_figure(rows: Sequence[Row], variances: Sequence[float]) -> Figure:
    """Test accuracy over optimiser steps, a panel a variance, a line a method: mean, and band of least to largest.

    Args:
        rows: With ``variance``, ``method``, ``seed``, ``step`` and ``accuracy``; an untrained method has one step.
        variances: Which to draw.
    """
    figure = Figure(figsize=(3.6 * len(variances), 3.6), layout="constrained")
    panels = figure.subplots(1, len(variances), squeeze=False)[0]
    for axes, variance in zip(panels, variances, strict=True):
        plot_steps(axes, [row for row in rows if row["variance"] == variance], f"σ² = {variance:g}")
    add_legend(panels[0])
    return figure


def plot_steps(axes: Axes, rows: Sequence[Row], title: str) -> None:
    """Draw a panel of `steps_figure`, of one variance."""
    methods = dict.fromkeys(row["method"] for row in rows)
    end = max(row["step"] for row in rows)
    for method, line in zip(methods, METHOD_LINES, strict=False):
        own = [row for row in rows if row["method"] == method]
        steps = sorted({row["step"] for row in own})
        values = np.array([[row["accuracy"] for row in own if row["step"] == step] for step in steps])
        if len(steps) == 1:
            steps, values = [0, end], np.repeat(values, 2, axis=0)
        axes.plot(steps, values.mean(1), label=method, lw=1.6, **line)
        axes.fill_between(steps, values.min(1), values.max(1), color=line["color"], alpha=0.15, lw=0)
    label_axes(axes, title, "test accuracy (share)", "optimiser steps")
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(0, end)


def ranking_figure(rows: Sequence[Row], score: str, truth: str, label: str) -> Figure:
    """A score of source backbones against the accuracy of a trained head, one panel per target.

    Args:
        rows: With ``target``, ``source`` and the two keys.
        score: Key of the horizontal axis.
        truth: Key of the vertical axis.
        label: Of the horizontal axis.
    """
    targets = list(dict.fromkeys(row["target"] for row in rows))
    sources = list(dict.fromkeys(row["source"] for row in rows))
    figure = Figure(figsize=(3.4 * len(targets) + 2.2, 3.8), layout="constrained")
    panels = figure.subplots(1, len(targets), squeeze=False)[0]
    markers = "os^Dv<>ph*X8PdH1"
    for axes, target in zip(panels, targets, strict=True):
        for row in rows:
            if row["target"] == target:
                place = sources.index(row["source"])
                color = LINES[place % len(LINES)]["color"]
                marker = markers[place % len(markers)]
                axes.plot(row[score], row[truth], marker, color=color, label=row["source"], ms=6)
        label_axes(axes, target, "accuracy of the trained head", label)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside right center")
    return figure
