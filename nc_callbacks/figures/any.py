"""One metric of a history on axes of the caller's, whatever its form."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nc_callbacks.figures.each import plot_pairs
from nc_callbacks.figures.style import Record, add_legend, keys_of, label_axes, plot_metric, plot_per_class, stacked
from nc_callbacks.metrics import LogKey, metric_of


def plot_value(
    history: Sequence[Record], latest: Record, value: str, prefix: str = "nc", axes: Axes | None = None
) -> tuple[Figure, Axes]:
    """Draw a number or a per-class vector over epochs, a matrix or a spectrum of the last look.

    Args:
        history: A callback's history.
        latest: Its last look, with matrices.
        value: A metric's name, or a log key.
        prefix: First part of the log keys.
        axes: Where to draw; by default a new figure.

    Returns:
        The figure and the axes.

    Raises:
        ValueError: No look has such a value.
    """
    records = [*history, latest]
    keys = [LogKey.parse(value)] if any(value in record for record in records) else keys_of(records, value, prefix)
    if not keys:
        names = dict.fromkeys(key.name for key in map(LogKey.parse, latest) if key.is_ours)
        near = get_close_matches(value, names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Expected a metric such as {', '.join(list(names)[:5])} or a log key, got {value!r}.{hint}")
    metric, first = metric_of(keys[0].name), keys[0]
    if axes is None:
        axes = Figure(figsize=(5.6, 3.8), layout="constrained").subplots()
    of_one = f", {first.title}"
    last = latest.get(str(first))
    dimensions = 0 if last is None else np.ndim(last)
    if dimensions == 0:
        title = metric.title + (of_one if len(keys) == 1 else "")
        plot_metric(axes, history, keys, title, metric.unit, metric.log)
    elif last is not None and dimensions == 2:
        plot_pairs(axes, last, metric, first.title)
    elif metric.axis == "direction":
        for key in keys:
            if str(key) in latest:
                shares = np.asarray(latest[str(key)])
                axes.plot(np.arange(1, len(shares) + 1), shares, label=key.title, lw=1.6)
        label_axes(axes, metric.title, metric.unit, "direction")
        add_legend(axes)
    else:
        epochs, values = stacked(history, first)
        plot_per_class(axes, epochs, values, metric.title + of_one, metric.unit)
    return cast(Figure, axes.figure), axes
