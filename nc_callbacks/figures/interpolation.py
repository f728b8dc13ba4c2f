"""Figures of symmetric quasi-interpolation, in the form of Lindegaard's Fig. 1."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from nc_callbacks.figures.style import (
    LINES,
    Record,
    add_legend,
    at_collapse,
    keys_of,
    label_axes,
    named,
    save_all,
    series,
)
from nc_callbacks.figures.ticks import logarithmic
from nc_callbacks.metrics import METRICS, LogKey


def interpolation_figure(
    history: Sequence[Record], prefix: str = "nc", split: str = "train", loader: int | None = None
) -> Figure:
    """ε_avg and (k−1) ε̃_avg, which agree where the condition holds on average, and their relative spreads, over epochs.

    The spreads are drawn in absolute value on a logarithmic axis; at 0 every sample would have the same error.
    """
    key = partial(LogKey, split=split, loader=loader, prefix=prefix)
    data = key("sqi_epsilon").data
    epochs, epsilon = series(history, key("sqi_epsilon"))
    gap = series(history, key("sqi_gap"))[1]
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    averages, spreads = figure.subplots(1, 2)
    averages.plot(epochs, epsilon, label="ε_avg", lw=1.8, **LINES[0])
    averages.plot(epochs, np.subtract(epsilon, gap), label="(k−1) ε̃_avg", lw=1.8, **LINES[1])
    label_axes(averages, f"Average errors, {data}", METRICS["sqi_epsilon"].unit)
    for name, label, line in (
        ("sqi_epsilon_rel_std", "std(ε) / |ε_avg|", LINES[0]),
        ("sqi_epsilon_off_rel_std", "std(ε̃) / |ε̃_avg|", LINES[1]),
    ):
        spreads.plot(epochs, np.abs(series(history, key(name))[1]), label=label, lw=1.8, **line)
    at_collapse(spreads, 1, "as large as the mean (0 at collapse)")
    logarithmic(spreads)
    label_axes(spreads, f"Spread relative to the mean, {data}", METRICS["sqi_epsilon_rel_std"].unit)
    for axes in (averages, spreads):
        add_legend(axes)
    return figure


def save_interpolation_figures(
    history: Sequence[Record], folder: Path, prefix: str = "nc", formats: Sequence[str] = ("png",)
) -> list[Path]:
    """Save ``quasi_interpolation`` for each split and loader.

    Returns:
        The files written.
    """
    figures = {
        named("quasi_interpolation", key): partial(interpolation_figure, history, prefix, key.split, key.loader)
        for key in keys_of(history, "sqi_epsilon", prefix)
    }
    return save_all(figures, folder, formats)
