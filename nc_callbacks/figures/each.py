"""A figure of each metric, as its row in the registry says."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from nc_callbacks.figures.style import (
    Makers,
    Record,
    add_legend,
    at_collapse,
    diverging,
    keys_of,
    named,
    numbers,
    plot_metric,
    plot_per_class,
    save_all,
    stacked,
)
from nc_callbacks.metrics import LogKey, Metric, metric_of, short

PAIRS = "class × class"

NUMBERED = 12
"""Classes up to which a matrix has its numbers in its cells."""


def number_figures(history: Sequence[Record], prefix: str = "nc") -> dict[str, Figure]:
    """Each number over epochs, one line per split, layer and loader, by its name."""
    return {name: make() for name, make in makers_of_numbers(history, prefix).items()}


def makers_of_numbers(history: Sequence[Record], prefix: str = "nc", num_classes: int | None = None) -> Makers:
    """What makes each of `number_figures`."""
    found = numbers(history, prefix)
    return {name: partial(number_figure, history, keys, num_classes) for name, keys in found.items()}


def number_figure(history: Sequence[Record], keys: Sequence[LogKey], num_classes: int | None = None) -> Figure:
    """One number over epochs, a line a log key, and its value at collapse where the axis has a place for it.

    Args:
        history: A callback's history.
        keys: Log keys.
        num_classes: k, for values at collapse that depend on it.
    """
    metric = metric_of(keys[0].name)
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    where = f", {keys[0].title}" if len(keys) == 1 else ""
    axes = figure.subplots()
    plot_metric(axes, history, keys, metric.title + where, metric.unit, metric.log)
    known = num_classes is not None or not callable(metric.ideal)
    ideal = metric.value_at_collapse(num_classes or 0, num_classes or 0) if known else None
    if ideal is not None and axes.get_yscale() == "linear":
        low, high = axes.get_ylim()
        at_collapse(axes, ideal, f"at collapse: {short(ideal)}")
        margin = 0.04 * (max(high, ideal) - min(low, ideal))
        axes.set_ylim(min(low, ideal - margin), max(high, ideal + margin))
        add_legend(axes)
    return figure


def vector_figures(history: Sequence[Record], prefix: str = "nc") -> dict[str, Figure]:
    """Each vector with one entry per class over epochs, one figure per split, layer and loader."""
    return {name: make() for name, make in makers_of_vectors(history, prefix).items()}


def makers_of_vectors(history: Sequence[Record], prefix: str = "nc") -> Makers:
    """What makes each of `vector_figures`."""
    return {named(key.name, key): partial(_vector_figure, history, key) for key in _shown(history, "class", prefix)}


def _vector_figure(history: Sequence[Record], key: LogKey) -> Figure:
    metric = metric_of(key.name)
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    epochs, values = stacked(history, key)
    plot_per_class(figure.subplots(), epochs, values, f"{metric.title}, {key.title}", metric.unit)
    return figure


def matrix_figures(latest: Record, prefix: str = "nc") -> dict[str, Figure]:
    """Each matrix of pairs of classes at the last look."""
    return {name: make() for name, make in makers_of_matrices(latest, prefix).items()}


def makers_of_matrices(latest: Record, prefix: str = "nc") -> Makers:
    """What makes each of `matrix_figures`."""
    return {named(key.name, key): partial(_matrix_figure, latest, key) for key in _shown([latest], PAIRS, prefix)}


def _matrix_figure(latest: Record, key: LogKey) -> Figure:
    figure = Figure(figsize=(5.4, 4.6), layout="constrained")
    plot_pairs(figure.subplots(), latest[str(key)], metric_of(key.name), key.title)
    return figure


def plot_pairs(
    axes: Axes, matrix: Tensor, metric: Metric, where: str = "", bar: Axes | None = None, digits: bool = True
) -> None:
    """Heat map of a value a pair of classes, with numbers up to twelve classes.

    Args:
        axes: Where to draw.
        matrix: (k, k).
        metric: Its row, for title, unit and range.
        where: Of what, for the title.
        bar: Where the bar of colours goes; by default beside the matrix.
        digits: Whether numbers may stand in the cells.
    """
    values = np.asarray(matrix)
    k = len(values)
    largest = _span(values, metric)
    # Many classes are averaged where a pixel has several, as values and not as colours.
    image = axes.imshow(values, cmap=diverging(), vmin=-largest, vmax=largest, interpolation_stage="data")
    ideal = metric.value_at_collapse(k, 0)
    said = "" if ideal is None else f"\nat collapse {short(ideal)} off the diagonal"
    axes.set_title(metric.title + (f", {where}" if where else "") + said, fontsize=10)
    absent = [str(c) for c in np.flatnonzero(~np.isfinite(values).any(1))]
    of_absent = f" (grey: no samples of {', '.join(absent[:5])}{', …' if len(absent) > 5 else ''})" if absent else ""
    axes.set_xlabel(f"class{of_absent}")
    axes.set_ylabel("class")
    if k <= NUMBERED:
        axes.set_xticks(range(k))
        axes.set_yticks(range(k))
        for (row, column), value in np.ndenumerate(values if digits else np.empty((0, 0))):
            if not np.isfinite(value):
                continue
            colour = "white" if abs(value) > 0.6 * largest else "black"
            text = f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")
            axes.text(column, row, text, ha="center", va="center", fontsize=6, color=colour)
    beyond: Literal["both", "neither"] = "both" if np.nanmax(np.abs(values), initial=0) > largest else "neither"
    if bar is None:
        axes.figure.colorbar(image, ax=axes, shrink=0.8, label=metric.unit, extend=beyond)
    else:
        axes.figure.colorbar(image, cax=bar, orientation="horizontal", label=metric.unit, extend=beyond)


def _span(values: np.ndarray, metric: Metric) -> float:
    """What the colours span: the metric's range, or of many classes 99 % of what is off the diagonal."""
    off = values[~np.eye(len(values), dtype=bool) & np.isfinite(values)]
    if len(values) > NUMBERED and len(off):
        return max(1e-6, *np.abs(np.quantile(off, (0.005, 0.995))).tolist())
    return float(metric.range[1] if np.isfinite(metric.range[1]) else np.nanmax(np.abs(values), initial=1e-12))


def save_metric_figures(
    history: Sequence[Record], latest: Record, folder: Path, prefix: str = "nc", formats: Sequence[str] = ("png",)
) -> list[Path]:
    """Save a figure of each number and each per-class vector over epochs, and of each matrix at the last look.

    Args:
        history: A callback's history.
        latest: Its last look, with matrices.
        folder: An existing folder.
        prefix: First part of the log keys.
        formats: Of ``"png"``, ``"svg"`` and ``"pdf"``.

    Returns:
        The files written.
    """
    figures = {
        **makers_of_numbers(history, prefix),
        **makers_of_vectors(history, prefix),
        **makers_of_matrices(latest, prefix),
    }
    return save_all(figures, folder, formats)


def _shown(records: Sequence[Record], axis: str, prefix: str) -> list[LogKey]:
    """Keys of the metrics along an axis that have a panel."""
    names = dict.fromkeys(LogKey.parse(text).name for record in records for text in record)
    metrics = [metric for metric in map(metric_of, names) if metric.axis == axis and metric.panel]
    return [key for metric in metrics for key in keys_of(records, metric.name, prefix)]
