"""Figures of layers' spectra, in the form of Lindegaard's Fig. 3."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nc_callbacks.figures.depth import makers_of_depth
from nc_callbacks.figures.each import number_figure
from nc_callbacks.figures.style import (
    LINES,
    Record,
    add_legend,
    at_collapse,
    keys_of,
    label_axes,
    named,
    save_all,
)
from nc_callbacks.figures.ticks import logarithmic
from nc_callbacks.metrics import LogKey

RANK = "spectrum_effective_rank"


def spectrum_figure(
    latest: Record,
    prefix: str = "nc",
    split: str = "train",
    loader: int | None = None,
    num_classes: int | None = None,
) -> Figure:
    """Singular values (their squares add up to 1) and cumulative explained variance of each layer, at the last look.

    With `num_classes` k, a dotted line at k − 1, the number of directions at collapse.
    """
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    data = LogKey("", split, "", loader).data
    keys = [key for key in keys_of([latest], "explained_variance", prefix) if key.data == data]
    spectra = {key.layer or "classifier's input": np.asarray(latest[str(key)]) for key in keys}
    plot_spectra(figure.subplots(1, 2), spectra, data, num_classes)
    return figure


def plot_spectra(
    panels: Sequence[Axes], spectra: Mapping[str, np.ndarray], where: str, num_classes: int | None = None
) -> None:
    """Draw singular values (their squares add up to 1) and cumulative explained variance, one line per spectrum.

    Args:
        panels: Where to draw the singular values, and the explained variance.
        spectra: Shares of explained variance, largest first, by label.
        where: Of what, for the titles.
        num_classes: k, for the line at k − 1.
    """
    singular, cumulative = panels
    for (label, shares), line in zip(spectra.items(), cycle(LINES), strict=False):
        number = np.arange(1, len(shares) + 1)
        positive = shares > 1e-14
        singular.plot(number[positive], np.sqrt(shares[positive]), label=label, lw=1.6, **line)
        cumulative.plot(number, np.cumsum(shares), label=label, lw=1.6, **line)
    logarithmic(singular)
    label_axes(singular, f"Singular values, {where}", "dimensionless (squares add up to 1)", "number")
    label_axes(cumulative, f"Cumulative explained variance, {where}", "share (dimensionless)", "number of directions")
    for axes in panels:
        logarithmic(axes, "x")
        if num_classes is not None:
            at_collapse(axes, num_classes - 1, f"k − 1 = {num_classes - 1}", vertical=True)
        add_legend(axes)


def save_spectrum_figures(
    history: Sequence[Record],
    latest: Record,
    folder: Path,
    prefix: str = "nc",
    formats: Sequence[str] = ("png",),
    num_classes: int | None = None,
) -> list[Path]:
    """Save ``spectrum`` and ``spectrum_effective_rank`` over epochs, one a split and loader.

    Returns:
        The files written.
    """
    figures: dict[str, Callable[[], Figure]] = {**makers_of_depth(history, prefix, "depth_spectrum")}
    found = keys_of([latest], "explained_variance", prefix)
    for key in {key.data: replace(key, layer="") for key in found}.values():
        figures[named("spectrum", key)] = partial(spectrum_figure, latest, prefix, key.split, key.loader, num_classes)
        ranks = [replace(other, name=RANK) for other in found if other.data == key.data]
        figures[named(RANK, key)] = partial(number_figure, history, ranks, num_classes)
    return save_all(figures, folder, formats)
