"""One figure of a run: all conditions of collapse over epochs, beside their ideal values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nc_callbacks.figures.each import plot_pairs
from nc_callbacks.figures.sizes import classes_of, features_of
from nc_callbacks.figures.style import LINES, Record, add_legend, at_collapse, label_axes, plot_metric, save_all, series
from nc_callbacks.metrics import METRICS, LogKey

PANELS = (
    ("NC1: variability within classes", ("nc1", "nc1_cdnv")),
    ("NC2: spread of norms (std / mean)", ("nc2_equinorm", "nc2_equinorm_weights")),
    ("NC2: cosines from −1/(k−1)", ("nc2_equiangularity", "nc2_equiangularity_weights")),
    ("NC3: weights from class means", ("nc3",)),
    ("NC4: classifier ≠ nearest mean", ("nc4",)),
    ("Accuracy", ("accuracy", "ncc_accuracy", "accuracy_centred_means")),
    ("W–M̄: cosine of weights and means", ("wm_cosine_min", "wm_cosine")),
    ("SQI: std / mean of the errors", ("sqi_epsilon_rel_std", "sqi_epsilon_off_rel_std")),
    ("Spectrum: effective rank", ("spectrum_effective_rank",)),
)
"""Titles, and the metrics of each panel, which have one unit."""

COLUMNS = 5
Looks = tuple[Sequence[Record], Record, str]
"""A callback's history, its latest look, and its prefix."""


def summary_figure(looks: Iterable[Looks], prefix: str = "nc") -> Figure:
    """All conditions of collapse that several callbacks measured, on the training split and faintly on validation's.

    Dotted lines are the values at collapse; the vertical line is the first epoch without training error.

    Args:
        looks: Of each callback its `history`, its `latest` and its `prefix`.
        prefix: Which callbacks to draw.
    """
    own = [(history, latest) for history, latest, given in looks if given == prefix]
    history = joined(history for history, _ in own)
    latest: dict[str, Any] = dict(chain.from_iterable(latest.items() for _, latest in own))
    split = "train" if any(f"{prefix}/train/" in key for key in latest) else next(iter(_splits(latest)), "train")
    panels = [(title, found) for title, names in PANELS if (found := _keys(history, names, split, prefix))]
    cosines = latest.get(str(LogKey("class_mean_cosines", split, prefix=prefix)))
    count = len(panels) + (cosines is not None)
    rows = max(1, math.ceil(count / COLUMNS))
    # As few places left empty as there can be.
    columns = max(1, math.ceil(count / rows))
    figure, grid = _grid(rows, columns)
    k = classes_of(latest, split, prefix)
    free = _first_without_error(history, split, prefix)
    for axes, (title, keys) in zip(grid, panels, strict=False):
        _plot(axes, history, title, keys, (k, features_of(latest, split, prefix) or k), free)
    if cosines is not None:
        heat = grid[len(panels)]
        place = heat.get_position()
        bar = figure.add_axes((place.x0, place.y0 - 0.62 / figure.get_figheight(), place.width, 0.008))
        plot_pairs(heat, cosines, METRICS["class_mean_cosines"], bar=bar, digits=False)
        heat.set_title("NC2: cosines of class means", fontsize=10, y=1.02)
    for axes in grid[count:]:
        axes.set_axis_off()
    _head(figure, history, latest, split, k, free)
    return figure


def _grid(rows: int, columns: int) -> tuple[Figure, list[Axes]]:
    """Axes at fixed places, in inches: a layout that measures every text takes as long as all the drawing."""
    cell_width, cell_height, left, bottom, head, foot = 3.7, 3.5, 0.95, 1.0, 0.45, 0.35
    width, height = max(7.4, cell_width * columns), cell_height * rows + head + foot
    figure, grid = Figure(figsize=(width, height)), []
    for row in range(rows):
        for column in range(columns):
            x, y = column * cell_width + left, height - head - (row + 1) * cell_height + bottom
            size = (cell_width - left - 0.15) / width, (cell_height - bottom - 0.4) / height
            grid.append(figure.add_axes((x / width, y / height, *size)))
    return figure, grid


def save_summary_figures(looks: Sequence[Looks], folder: Path, formats: Sequence[str] = ("png",)) -> list[Path]:
    """Save ``summary``, for a prefix other than ``nc`` with its name.

    Returns:
        The files written.
    """
    prefixes = dict.fromkeys(prefix for _, _, prefix in looks)
    figures = {
        "summary" if prefix == "nc" else f"summary_{prefix}": lambda prefix=prefix: summary_figure(looks, prefix)
        for prefix in prefixes
    }
    return save_all(figures, folder, formats)


def joined(histories: Iterable[Sequence[Record]]) -> list[dict[str, Any]]:
    """Histories of several callbacks as one, by epoch.

    Example:
        >>> joined([[{"epoch": 0, "nc/train/nc1": 0.5}], [{"epoch": 0, "nc/train/wm_cosine": 0.75}]])
        [{'epoch': 0, 'nc/train/nc1': 0.5, 'nc/train/wm_cosine': 0.75}]
    """
    rows: dict[int, dict[str, Any]] = {}
    for record in chain.from_iterable(histories):
        rows.setdefault(record["epoch"], {}).update(record)
    return [rows[epoch] for epoch in sorted(rows)]


def _splits(latest: Record) -> list[str]:
    return list(dict.fromkeys(key.split for key in map(LogKey.parse, latest) if key.is_ours))


def _keys(history: Sequence[Record], names: Sequence[str], split: str, prefix: str) -> list[LogKey]:
    """The keys of the split, then those of validation, as far as there are any, at the classifier's input."""
    splits = [split, "val"] if split != "val" else ["val"]
    logged = {key for record in history for key in record}
    loaders = (None, 0)
    found = [LogKey(name, of, "", loader, prefix) for of in splits for name in names for loader in loaders]
    return [key for key in found if str(key) in logged]


def _plot(
    axes: Axes,
    history: Sequence[Record],
    title: str,
    keys: Sequence[LogKey],
    sizes: tuple[int | None, int | None],
    free: int | None,
) -> None:
    metrics = [METRICS[key.name] for key in keys]
    names = list(dict.fromkeys(key.name for key in keys))
    relative = keys[0].name.endswith("rel_std")
    shown = [
        {**record, **{str(key): abs(record[str(key)]) for key in keys if str(key) in record}} for record in history
    ]
    rows = shown if relative else history
    plot_metric(axes, rows, keys, title, metrics[0].unit, log=all(metric.log for metric in metrics))
    for line, key in zip(axes.lines, keys, strict=True):
        line.set(**LINES[names.index(key.name) % len(LINES)])
        first = key.split == keys[0].split
        line.set(alpha=1 if first else 0.45, linewidth=1.8 if first else 1.1)
        line.set_label(METRICS[key.name].label if first else "_")
    k, p = sizes
    if k is not None and p is not None and (ideal := metrics[0].value_at_collapse(k, p)) is not None:
        low, high = axes.get_ylim()
        # A logarithmic axis has no place for 0, and one far below what was measured would hide the curves.
        if axes.get_yscale() == "linear":
            at_collapse(axes, ideal, "_")
            low, high = min(low, ideal), max(high, ideal)
            margin = 0.04 * (high - low)
            axes.set_ylim(low - margin, high + margin)
    if free is not None:
        axes.axvline(free, color="0.6", lw=0.9)
    label_axes(axes, title, metrics[0].unit)
    axes.set_title(title, fontsize=10, y=1.02)
    if (legend := axes.get_legend()) is not None:
        legend.remove()
    if len(names) > 1:
        add_legend(axes)


def _first_without_error(history: Sequence[Record], split: str, prefix: str) -> int | None:
    epochs, accuracy = series(history, LogKey("accuracy", split, prefix=prefix))
    return next((epoch for epoch, value in zip(epochs, accuracy, strict=True) if value == 1), None)


def _head(
    figure: Figure, history: Sequence[Record], latest: Record, split: str, k: int | None, free: int | None
) -> None:
    """Title, and what lines mean that no panel's legend names."""
    last = history[-1]["epoch"] + 1 if history else 0
    of_classes = f", {k} classes" if k is not None else ""
    title = f"Neural collapse after {last} epoch{'s' if last != 1 else ''}{of_classes}"
    figure.suptitle(title, fontsize=13, y=1 - 0.12 / figure.get_figheight(), va="top")
    handles = [Line2D([], [], color="0.2", lw=1.8, label=split)]
    if split != "val" and "val" in _splits(latest):
        handles.append(Line2D([], [], color="0.2", lw=1.1, alpha=0.45, label="val"))
    if k is not None:
        handles.append(Line2D([], [], color="0.35", lw=1.1, ls=":", label="at collapse (0 on logarithmic axes)"))
    if free is not None:
        handles.append(Line2D([], [], color="0.6", lw=0.9, label=f"no training error from epoch {free} on"))
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, fontsize=8.5)
