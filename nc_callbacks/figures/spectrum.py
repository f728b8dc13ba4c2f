"""Figures of layers' spectra, in the form of Lindegaard's Fig. 3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nc_callbacks.figures.style import LINES, Record, label_axes, plot_metric, save_all, splits_with


def spectrum_figure(latest: Record, prefix: str = "nc", split: str = "train") -> Figure:
    """Singular values (their squares add up to 1) and cumulative explained variance of each layer, at the last look."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    places = [p for p in splits_with(latest, prefix, "explained_variance") if p.partition("/")[0] == split]
    spectra = {
        place.partition("/")[2] or "classifier's input": np.asarray(latest[f"{prefix}/{place}/explained_variance"])
        for place in places
    }
    plot_spectra(figure.subplots(1, 2), spectra, split)
    return figure


def plot_spectra(panels: Sequence[Axes], spectra: Mapping[str, np.ndarray], where: str) -> None:
    """Draw singular values (their squares add up to 1) and cumulative explained variance, a line a spectrum.

    Args:
        panels: Where to draw the singular values, and the explained variance.
        spectra: Shares of explained variance, largest first, by label.
        where: Of what, for the titles.
    """
    singular, cumulative = panels
    for (label, shares), line in zip(spectra.items(), cycle(LINES), strict=False):
        number = np.arange(1, len(shares) + 1)
        positive = shares > 1e-14
        singular.plot(number[positive], np.sqrt(shares[positive]), label=label, lw=1.6, **line)
        cumulative.plot(number, np.cumsum(shares), label=label, lw=1.6, **line)
    singular.set_yscale("log")
    label_axes(singular, f"Singular values, {where}", "dimensionless (squares add up to 1)", "number")
    label_axes(cumulative, f"Cumulative explained variance, {where}", "share (dimensionless)", "number of directions")
    for axes in panels:
        axes.set_xscale("log")
        axes.legend(frameon=False, fontsize=8)


def save_spectrum_figures(history: Sequence[Record], latest: Record, folder: Path, prefix: str = "nc") -> list[Path]:
    """Save ``spectrum`` for each split, and ``spectrum_effective_rank`` over epochs.

    Returns:
        The files written.
    """
    figures = {}
    for split in ("train", "val"):
        places = [p for p in splits_with(latest, prefix, "explained_variance") if p.partition("/")[0] == split]
        if places:
            figures[f"spectrum/{split}"] = spectrum_figure(latest, prefix, split)
            figures[f"spectrum_effective_rank/{split}"] = figure = Figure(figsize=(5.2, 3.4), layout="constrained")
            keys = [f"{prefix}/{place}/spectrum_effective_rank" for place in places]
            plot_metric(figure.subplots(), history, keys, "Effective rank", "number of directions")
    return save_all(figures, folder)
