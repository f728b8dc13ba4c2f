"""Common parts of the figures: lines that read in grey, metrics over epochs, one value per class over epochs."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation
from torch import Tensor

from nc_callbacks.figures.bands import Band, Record, band_of
from nc_callbacks.figures.ticks import logarithmic, plain
from nc_callbacks.figures.titles import name_data
from nc_callbacks.metrics import BAND, LogKey, is_rounding, metric_of

Makers = dict[str, Callable[[], Figure]]
"""What makes figures, by their names."""

DPI = 130
"""Of pictures as PNG."""

_SETTINGS: dict[str, Any] = {"png": {"pil_kwargs": {"compress_level": 3}}}
"""Of a format: the files are a tenth larger, and written in half of the time."""

announce: ContextVar[Callable[[str], Any]] = ContextVar("announce", default=lambda name: None)
"""Called with the name of each figure before it is drawn."""

MAX_LINES = 10
"""More classes than this are drawn as quantile bands."""

LINES: tuple[dict[str, Any], ...] = (
    {"color": "#0b3c5d", "linestyle": "-"},
    {"color": "#d1702a", "linestyle": "--"},
    {"color": "#4c8c4a", "linestyle": "-."},
    {"color": "#8a4f9e", "linestyle": ":"},
)
"""Told apart by style as well as by colour, so that they read in grey."""

TEN = ("#0b3c5d", "#d1702a", "#4c8c4a", "#8a4f9e", "#2a9fb5", "#b8860b", "#c23b6f", "#6b6b6b", "#8fb339", "#a0522d")
"""Colours of up to ten classes."""

BELOW, ABOVE, MISSING = "#0072b2", "#d55e00", "#c9c9c4"
"""Colours of the least and the largest value of a matrix, and of what has none; the page has the same."""


def series(history: Sequence[Record], key: LogKey | str) -> tuple[list[int], list[float]]:
    """Epochs (counted from 1) and values of a log key, where it was logged."""
    key = str(key)
    found = [(record["epoch"] + 1, record[key]) for record in history if key in record]
    return [epoch for epoch, _ in found], [value for _, value in found]


def numbers(history: Sequence[Record], prefix: str = "nc") -> dict[str, list[LogKey]]:
    """Log keys of each number by its name, in the order of the history."""
    keys: dict[str, list[LogKey]] = {}
    for text, value in {text: value for record in history for text, value in record.items()}.items():
        key = LogKey.parse(text)
        if key.is_ours and key.prefix == prefix and not isinstance(value, Tensor):
            keys.setdefault(key.name, []).append(key)
    return keys


def keys_of(records: Sequence[Record], name: str, prefix: str = "nc") -> list[LogKey]:
    """Log keys of one metric, of every split, layer and loader, in the order of the records."""
    keys = map(LogKey.parse, dict.fromkeys(text for record in records for text in record))
    return [key for key in keys if key.is_ours and (key.name, key.prefix) == (name, prefix)]


def plot_metric(
    axes: Axes, history: Sequence[Record], keys: Iterable[LogKey | str], title: str, unit: str, log: bool = True
) -> None:
    """Draw metrics over epochs.

    The axis is logarithmic where the values are positive and the largest is three times the least.

    Args:
        axes: Where to draw.
        history: A callback's history.
        keys: Log keys, a line each.
        title: Title.
        unit: Label of the vertical axis.
        log: Whether a logarithmic axis suits them.
    """
    drawn: list[float] = []
    rows: list[tuple[str, list[float]]] = []
    bands: list[Band] = []
    for line, key in zip(cycle(LINES), map(str, keys), strict=False):
        epochs, values = series(history, key)
        marker = "o" if len(epochs) <= 3 else None
        axes.plot(epochs, values, label=LogKey.parse(key).title, marker=marker, lw=1.6, **line)
        drawn += [value for value in values if math.isfinite(value)]
        rows.append((key, values))
        bands += band_of(history, LogKey.parse(key), line["color"])
    rounding = bool(rows) and all(is_rounding(values, metric_of(LogKey.parse(key).name)) for key, values in rows)
    if rounding:
        # An axis that fits them would show their rounding as a trend.
        margin = 0.5 * (abs(drawn[0]) if abs(drawn[0]) > 1e-3 else 1)
        axes.set_ylim(min(drawn) - margin, max(drawn) + margin)
    elif log and drawn and min(drawn) > 0 and max(drawn) > 3 * min(drawn):
        logarithmic(axes)
    for band in bands:
        axes.fill_between(band.epochs, band.low, band.high, color=band.colour, alpha=0.2, lw=0, zorder=1)
    if bands and axes.get_yscale() == "log":
        # A band that reaches 0 ends at the lower edge.
        axes.set_ylim(bottom=min(drawn) / 2)
    text = f"{title} (constant, up to rounding)" if rounding else title
    label_axes(axes, f"{text}\nband: ± {BAND} standard errors" if bands else text, unit)
    if len(axes.lines) > 1:
        add_legend(axes)


def plot_per_class(axes: Axes, epochs: Sequence[int], values: np.ndarray, title: str, unit: str) -> None:
    """Draw one value per class over epochs: one line per class, or quantile bands where there are more than ten.

    Args:
        axes: Where to draw.
        epochs: One number per look.
        values: (looks, k).
        title: Title.
        unit: Label of the vertical axis.
    """
    if values.shape[1] <= MAX_LINES:
        for c in range(values.shape[1]):
            line = {"color": TEN[c], "linestyle": LINES[c % len(LINES)]["linestyle"]}
            if not np.isfinite(values[:, c]).any():
                axes.plot([], [], label=f"class {c}: no samples", lw=1.2, **line)
                continue
            marker, some = "ov^s"[c // len(LINES) % 4], max(1, len(epochs) // 6)
            axes.plot(epochs, values[:, c], label=f"class {c}", lw=1.2, marker=marker, markevery=some, ms=4, **line)
    else:
        # A look without a finite value has no quantile.
        known = np.isfinite(values).any(1)
        values, epochs = values[known], np.asarray(epochs)[known].tolist()
        for low, high, shade in ((0, 1, "0.9"), (0.1, 0.9, "0.78"), (0.25, 0.75, "0.62")):
            bounds = np.nanquantile(values, [low, high], axis=1)
            label = "all classes" if low == 0 else f"{round(100 * (high - low))} % of classes"
            axes.fill_between(epochs, *bounds, color=shade, lw=0, label=label)
        axes.plot(epochs, np.nanmedian(values, axis=1), color=LINES[0]["color"], lw=1.8, label="median class")
    label_axes(axes, title, unit)
    add_legend(axes, columns=4)


def at_collapse(axes: Axes, value: float, label: str = "at collapse", vertical: bool = False) -> None:
    """A dotted line at an ideal value, which the legend names."""
    draw = axes.axvline if vertical else axes.axhline
    draw(value, color="0.35", lw=1.1, ls=":", label=label)


def add_legend(axes: Axes, columns: int = 3) -> None:
    """A legend below the axes, where it lies over no data, in as many columns as have room, and at most these."""
    below = axes.transAxes + ScaledTranslation(0, -0.45, axes.figure.dpi_scale_trans)
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(0, 0),
        bbox_transform=below,
        ncols=_columns(axes, columns),
        frameon=False,
        fontsize=7.5,
        borderaxespad=0,
        columnspacing=1.2,
        handlelength=2.4,
    )


def _columns(axes: Axes, most: int) -> int:
    """Columns of a legend that are no wider than the axes: one that is would be cut, or push the panels apart."""
    figure, place = axes.figure, axes.get_subplotspec()
    width = figure.bbox.width / figure.dpi
    inches = width * axes.get_position().width
    if place is not None and figure.get_layout_engine() is not None:
        inches = width / place.get_gridspec().ncols - 0.9
    lengths = [len(label) for label in axes.get_legend_handles_labels()[1]]
    for columns in range(min(most, len(lengths)), 1, -1):
        # A line before the text, and the mean width of a letter.
        if sum(0.45 + 0.06 * max(part) for part in np.array_split(lengths, columns)) <= inches:
            return columns
    return 1


def diverging() -> Colormap:
    """Colours of a matrix around 0; what has no value is grey, and no colour of the scale."""
    return LinearSegmentedColormap.from_list("diverging", [BELOW, "#ffffff", ABOVE]).with_extremes(bad=MISSING)


def label_axes(axes: Axes, title: str, unit: str, horizontal: str = "epoch") -> None:
    """Title, axis labels with units, a light grid."""
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(horizontal)
    axes.set_ylabel(unit)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if axes.get_yscale() == "linear":
        plain(axes)
    axes.grid(True, color="0.9", lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def stacked(history: Sequence[Record], key: LogKey | str) -> tuple[list[int], np.ndarray]:
    """Epochs (counted from 1) and the vectors of a key as a matrix (looks, k), where they were kept."""
    key = str(key)
    found = [(record["epoch"] + 1, np.asarray(record[key])) for record in history if key in record]
    return [epoch for epoch, _ in found], np.array([vector for _, vector in found])


def named(name: str, key: LogKey) -> str:
    """A figure's name with where its values are of.

    Example:
        >>> named("wm_cosine", LogKey("wm_cosine_per_class", "val", loader=0))
        'wm_cosine/val/dataloader_idx_0'
    """
    return f"{name}/{key.where}"


def save_all(
    figures: Mapping[str, Figure | Callable[[], Figure]], folder: Path, formats: Sequence[str] = ("png",)
) -> list[Path]:
    """Make figures one by one and save each as ``NAME.png``, or in other formats.

    Args:
        figures: By name, a figure or what makes it.
        folder: An existing folder.
        formats: Of ``"png"``, ``"svg"`` and ``"pdf"``.

    Returns:
        The files written.

    Raises:
        RuntimeError: Some could not be made or saved; all others are there.
    """
    paths, failed = [], {}
    for name, figure in figures.items():
        announce.get()(name)
        try:
            with _without_collection():
                made = figure if isinstance(figure, Figure) else figure()
                name_data(made)
                for kind in formats:
                    path = folder / f"{name.replace('/', '_')}.{kind}"
                    made.savefig(path, dpi=DPI, **_SETTINGS.get(kind, {}))
                    paths.append(path)
        except Exception as error:
            failed[name] = error
    if failed:
        first = next(iter(failed.values()))
        raise RuntimeError(f"{', '.join(failed)} could not be drawn: {first!r}") from first
    return paths


@contextmanager
def _without_collection() -> Iterator[None]:
    """No garbage collection: a figure's many small objects start it, and it goes through all that training has."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
