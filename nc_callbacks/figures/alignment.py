"""Figures of weights and class means, in the form of Seddik & Tamaazousti's Figs. 1 and 2."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from nc_callbacks.figures.style import LINES, Record, label_axes, plot_metric, plot_per_class, save_all, stacked


def near_optimality_figure(latest: Record, prefix: str = "nc", split: str = "train") -> Figure:
    """μ₁, μ₂ and σ²₁, σ²₂ of each class at the last look (Fig. 1): near-optimal where the second of each is near 0."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = (
        ("Class means", "squared features", (("mu1", "‖m_c‖²"), ("mu2", "mean of m_cᵀm_c'"))),
        ("Class covariances", "squared features", (("sigma1", "σ²₁, diagonal"), ("sigma2", "σ²₂, off diagonal"))),
    )
    for axes, (title, unit, names) in zip(figure.subplots(1, 2), panels, strict=True):
        for (name, label), line, marker in zip(names, LINES, "ov", strict=False):
            values = np.asarray(latest[f"{prefix}/{split}/{name}_per_class"])
            size = 5 if len(values) <= 100 else 2
            axes.plot(values, marker, color=line["color"], ms=size, label=f"{label}, mean {np.nanmean(values):.3g}")
            axes.axhline(np.nanmean(values), color=line["color"], ls=line["linestyle"], lw=1)
        # Many classes fill the axes: the legend covers what lies under it.
        axes.legend(framealpha=1, edgecolor="none", fontsize=8)
        label_axes(axes, title, unit, horizontal="class")
    return figure


def cosines_figure(history: Sequence[Record], prefix: str = "nc", split: str = "train") -> Figure:
    """Cos(w_c, μ_c) of each class over epochs (Fig. 2, first and third row)."""
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.subplots()
    epochs, values = stacked(history, f"{prefix}/{split}/wm_cosine_per_class")
    plot_per_class(axes, epochs, values, "Cosine of weights and centred class means", "cosine (dimensionless)")
    axes.set_ylim(top=1)
    return figure


def accuracies_figure(history: Sequence[Record], prefix: str = "nc") -> Figure:
    """Accuracy of W and of the centred class means over epochs, by split (Fig. 2, second and fourth row)."""
    splits = [split for split in ("train", "val") if any(f"{prefix}/{split}/accuracy" in r for r in history)]
    figure = Figure(figsize=(4.6 * len(splits), 3.4), layout="constrained")
    for axes, split in zip(figure.subplots(1, len(splits), squeeze=False)[0], splits, strict=True):
        names = {"accuracy": "W", "accuracy_centred_means": "centred class means"}
        keys = [f"{prefix}/{split}/{name}" for name in names]
        plot_metric(axes, history, keys, f"Accuracy, {split}", "share of samples")
        for line, label in zip(axes.lines, names.values(), strict=True):
            line.set_label(label)
        axes.legend(frameon=False, fontsize=8)
    return figure


def save_alignment_figures(history: Sequence[Record], latest: Record, folder: Path, prefix: str = "nc") -> list[Path]:
    """Save ``near_optimality``, ``wm_cosine`` (one a split) and ``accuracy_centred_means``.

    Returns:
        The files written.
    """
    figures = {}
    for split in ("train", "val"):
        if f"{prefix}/{split}/wm_cosine_per_class" in latest:
            figures[f"near_optimality/{split}"] = near_optimality_figure(latest, prefix, split)
            figures[f"wm_cosine/{split}"] = cosines_figure(history, prefix, split)
    if figures:
        figures["accuracy_centred_means"] = accuracies_figure(history, prefix)
    return save_all(figures, folder)
