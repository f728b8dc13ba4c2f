"""Figures of weights and class means, in the form of Seddik & Tamaazousti's Figs. 1 and 2."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from nc_callbacks.figures.style import (
    LINES,
    Record,
    add_legend,
    keys_of,
    label_axes,
    named,
    plot_metric,
    plot_per_class,
    save_all,
    stacked,
)
from nc_callbacks.metrics import METRICS, LogKey, short

OF_EACH_CLASS = (("mu1_per_class", "mu2_per_class"), ("sigma1_per_class", "sigma2_per_class"))
"""Panels of the figure of near-optimality."""


def near_optimality_figure(
    latest: Record, prefix: str = "nc", split: str = "train", loader: int | None = None
) -> Figure:
    """μ₁, μ₂ and σ²₁, σ²₂ of each class at the last look (Fig. 1): near-optimal where the second of each is near 0."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, names in zip(figure.subplots(1, 2), OF_EACH_CLASS, strict=True):
        for name, line, marker in zip(names, LINES, "ov", strict=False):
            key, label = LogKey(name, split, "", loader, prefix), METRICS[name].label
            values = np.asarray(latest[str(key)])
            size = 5 if len(values) <= 100 else 2
            mean = float(np.mean(finite)) if len(finite := values[np.isfinite(values)]) else math.nan
            axes.plot(values, marker, color=line["color"], ms=size)
            axes.axhline(mean, color=line["color"], ls=line["linestyle"], lw=1)
            # In the legend the points and the line at their mean are one.
            axes.plot([], [], marker=marker, ms=size, lw=1, label=f"{label}, mean {short(mean)}", **line)
        label_axes(axes, f"{METRICS[name].panel}, {key.data}", METRICS[name].unit, horizontal="class")
        add_legend(axes)
    return figure


def cosines_figure(
    history: Sequence[Record], prefix: str = "nc", split: str = "train", loader: int | None = None
) -> Figure:
    """Cos(w_c, μ_c) of each class over epochs (Fig. 2, first and third row)."""
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.subplots()
    key = LogKey("wm_cosine_per_class", split, "", loader, prefix)
    epochs, values = stacked(history, key)
    plot_per_class(axes, epochs, values, f"{METRICS[key.name].title}, {key.data}", METRICS[key.name].unit)
    axes.set_ylim(top=1)
    return figure


def accuracies_figure(history: Sequence[Record], prefix: str = "nc") -> Figure:
    """Accuracy of W and of the centred class means over epochs, by split and loader (Fig. 2, second and fourth row)."""
    found = keys_of(history, "accuracy", prefix)
    figure = Figure(figsize=(4.6 * len(found), 3.4), layout="constrained")
    for axes, key in zip(figure.subplots(1, len(found), squeeze=False)[0], found, strict=True):
        pair = [key, replace(key, name="accuracy_centred_means")]
        plot_metric(axes, history, pair, f"Accuracy, {key.data}", METRICS["accuracy"].unit, log=False)
        for line, label in zip(axes.lines, ("W", "centred class means"), strict=True):
            line.set_label(label)
        add_legend(axes)
    return figure


def save_alignment_figures(
    history: Sequence[Record], latest: Record, folder: Path, prefix: str = "nc", formats: Sequence[str] = ("png",)
) -> list[Path]:
    """Save ``near_optimality``, ``wm_cosine`` (one a split and loader) and ``accuracy_centred_means``.

    Returns:
        The files written.
    """
    figures: dict[str, Callable[[], Figure]] = {}
    for key in keys_of([latest], "wm_cosine_per_class", prefix):
        figures[named("near_optimality", key)] = partial(near_optimality_figure, latest, prefix, key.split, key.loader)
        figures[named("wm_cosine", key)] = partial(cosines_figure, history, prefix, key.split, key.loader)
    if figures:
        figures["accuracy_centred_means"] = partial(accuracies_figure, history, prefix)
    return save_all(figures, folder, formats)
