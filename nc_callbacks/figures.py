"""Matplotlib figures of the metrics, from a callback's `history` and `latest`.

Figures are made without pyplot: no global state, no window, any thread.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from nc_callbacks.callbacks.base import Record

TITLES = {
    "nc1": "NC1: tr(Σ_W Σ_B⁺) / k",
    "nc1_quotient": "NC1: tr Σ_W / tr Σ_B",
    "nc1_cdnv": "NC1: class-distance normalised variance",
    "nc2_equinorm": "NC2: spread of class-mean norms",
    "nc2_equinorm_weights": "NC2: spread of weight norms",
    "nc2_equiangularity": "NC2: equiangularity of class means",
    "nc2_equiangularity_signed": "NC2: equiangularity of class means, signed",
    "nc2_equiangularity_weights": "NC2: equiangularity of weights",
    "nc2_etf": "NC2: distance of class means to the ETF",
    "nc2_etf_weights": "NC2: distance of weights to the ETF",
    "nc3": "NC3: distance of weights and class means",
    "nc3_etf": "NC3: distance of W Mᵀ to the ETF",
    "nc3_uniform_duality": "NC3: variance of cos(w, μ) over classes",
    "nc4": "NC4: classifier ≠ nearest class mean",
    "ncc_accuracy": "Accuracy of the nearest class mean",
    "accuracy": "Accuracy of the classifier",
    "tpt": "Terminal phase of training",
}
"""What each metric's figure is called."""

UNITS = {"nc4": "share of samples", "ncc_accuracy": "share of samples", "accuracy": "share of samples", "tpt": "0 or 1"}
"""Axis labels; every other metric is dimensionless."""

LINES: tuple[dict[str, Any], ...] = (
    {"color": "#0b3c5d", "linestyle": "-"},
    {"color": "#d1702a", "linestyle": "--"},
    {"color": "#4c8c4a", "linestyle": "-."},
    {"color": "#8a4f9e", "linestyle": ":"},
)
"""Told apart by style as well as by colour, so that they read in grey."""


def series(history: Sequence[Record], key: str) -> tuple[list[int], list[float]]:
    """Epochs (counted from 1) and values of a log key, where it was logged."""
    found = [(record["epoch"] + 1, record[key]) for record in history if key in record]
    return [epoch for epoch, _ in found], [value for _, value in found]


def metric_keys(history: Sequence[Record], prefix: str = "nc") -> dict[str, list[str]]:
    """Log keys of each metric by its name, in the order of the history."""
    keys: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for record in history for key in record):
        if key.startswith(f"{prefix}/") and not any(isinstance(record.get(key), Tensor) for record in history):
            keys.setdefault(key.rsplit("/", 1)[1], []).append(key)
    return keys


def plot_metric(axes: Axes, history: Sequence[Record], keys: Iterable[str], title: str, unit: str) -> None:
    """Draw metrics over epochs; the axis is logarithmic where the values are positive and span a decade or vanish.

    Args:
        axes: Where to draw.
        history: A callback's history.
        keys: Log keys, a line each.
        title: Title.
        unit: Label of the vertical axis.
    """
    drawn: list[float] = []
    for line, key in zip(LINES * 3, keys, strict=False):
        epochs, values = series(history, key)
        marker = "o" if len(epochs) <= 3 else None
        axes.plot(epochs, values, label=key.split("/", 1)[1].rsplit("/", 1)[0], marker=marker, lw=1.6, **line)
        drawn += [value for value in values if math.isfinite(value)]
    if unit == "dimensionless" and drawn and min(drawn) > 0 and max(drawn) > 3 * min(drawn):
        axes.set_yscale("log")
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("epoch")
    axes.set_ylabel(unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(True, which="both", color="0.9", lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if len(axes.lines) > 1:
        axes.legend(frameon=False, fontsize=8)


def plot_cosines(axes: Axes, cosines: Tensor) -> None:
    """Heat map of the cosines between centred class means, with numbers up to twelve classes.

    Args:
        axes: Where to draw.
        cosines: (k, k), in [−1, 1].
    """
    values = np.asarray(cosines)
    k = len(values)
    image = axes.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1)
    axes.set_title(f"cos(μ_c, μ_c'), at collapse {-1 / (k - 1):.3g} off the diagonal", fontsize=10)
    axes.set_xlabel("class")
    axes.set_ylabel("class")
    if k <= 12:
        axes.set_xticks(range(k))
        axes.set_yticks(range(k))
        for (row, column), value in np.ndenumerate(values):
            colour = "white" if abs(value) > 0.6 else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6, color=colour)
    axes.figure.colorbar(image, ax=axes, shrink=0.8, label="cosine (dimensionless)")


def collapse_figure(history: Sequence[Record], latest: Record, prefix: str = "nc", split: str = "train") -> Figure:
    """One picture of collapse at the classifier: NC1, NC2, NC3, NC4, accuracies and the cosines of the class means."""
    panels = [
        ("NC1: within-class variability", ["nc1", "nc1_cdnv"], "dimensionless"),
        ("NC2: equal norms", ["nc2_equinorm", "nc2_equinorm_weights"], "dimensionless"),
        ("NC2: equal angles", ["nc2_equiangularity", "nc2_equiangularity_weights"], "dimensionless"),
        ("NC3: weights become class means", ["nc3", "nc3_etf"], "dimensionless"),
        ("NC4: nearest class mean", ["nc4", "accuracy", "ncc_accuracy"], "share of samples"),
    ]
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    grid = figure.subplots(2, 3)
    for axes, (title, names, unit) in zip(grid.flat, panels, strict=False):
        plot_metric(axes, history, [f"{prefix}/{split}/{name}" for name in names], title, unit)
        for line, name in zip(axes.lines, names, strict=True):
            line.set_label(name)
        axes.legend(frameon=False, fontsize=8)
    cosines = latest.get(f"{prefix}/{split}/class_mean_cosines")
    if cosines is None:
        grid.flat[-1].set_axis_off()
    else:
        plot_cosines(grid.flat[-1], cosines)
    return figure


def save_collapse_figures(history: Sequence[Record], latest: Record, folder: Path, prefix: str = "nc") -> list[Path]:
    """Save a figure for each metric over epochs, each matrix of cosines, and the overview ``collapse.png``.

    Args:
        history: A callback's history.
        latest: Its last look, with matrices.
        folder: An existing folder.
        prefix: First part of the log keys.

    Returns:
        The files written.
    """
    figures: dict[str, Figure] = {}
    for name, keys in metric_keys(history, prefix).items():
        figures[name] = figure = Figure(figsize=(5.2, 3.4), layout="constrained")
        plot_metric(figure.subplots(), history, keys, TITLES.get(name, name), UNITS.get(name, "dimensionless"))
    for key, value in latest.items():
        if key.startswith(f"{prefix}/") and key.endswith("/class_mean_cosines"):
            where = "_".join(key.split("/")[1:-1])
            figures[f"class_mean_cosines_{where}"] = figure = Figure(figsize=(5.4, 4.6), layout="constrained")
            plot_cosines(figure.subplots(), value)
    for split in ("train", "val"):
        if f"{prefix}/{split}/nc3" in latest:
            figures["collapse" if split == "train" else f"collapse_{split}"] = collapse_figure(
                history, latest, prefix, split
            )
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=130)
    return paths
