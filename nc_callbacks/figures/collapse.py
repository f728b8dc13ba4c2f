"""Figures of neural collapse."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from nc_callbacks.figures.style import Record, metric_keys, plot_metric, save_all, splits_with

TITLES = {
    "nc1": "NC1: tr(Σ_W Σ_B⁺) / k",
    "nc1_quotient": "NC1: tr Σ_W / tr Σ_B",
    "nc1_cdnv": "NC1: class-distance normalised variance",
    "nc2_equinorm": "NC2: spread of class-mean norms",
    "nc2_equinorm_weights": "NC2: spread of weight norms",
    "nc2_equiangularity": "NC2: equiangularity of class means",
    "nc2_equiangularity_signed": "NC2: equiangularity of class means, signed",
    "nc2_equiangularity_weights": "NC2: equiangularity of weights",
    "nc2_uniformity": "NC2: uniformity of class means",
    "nc2_uniformity_var": "NC2: variance of the uniformity",
    "nc2_etf": "NC2: distance of class means to the ETF",
    "nc2_etf_weights": "NC2: distance of weights to the ETF",
    "nc3": "NC3: distance of weights and class means",
    "nc3_etf": "NC3: distance of W Mᵀ to the ETF",
    "nc3_uniform_duality": "NC3: variance of cos(w, μ) over classes",
    "nc5": "NC5: class means and out-of-distribution mean",
    "mse_nc1": "Squared error: L_NC1",
    "mse_nc23": "Squared error: L_NC2/3",
    "mse_perp": "Squared error: L_⊥",
    "nc4": "NC4: classifier ≠ nearest class mean",
    "ncc_accuracy": "Accuracy of the nearest class mean",
    "accuracy": "Accuracy of the classifier",
    "tpt": "Terminal phase of training",
}
"""What each metric's figure is called."""

UNITS = {"nc4": "share of samples", "ncc_accuracy": "share of samples", "accuracy": "share of samples", "tpt": "0 or 1"}
"""Axis labels; every other metric is dimensionless."""


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


def layers_figure(history: Sequence[Record], layers: Sequence[str], prefix: str = "nc") -> Figure:
    """Collapse at several layers over epochs, in the form of Lindegaard's Fig. 2.

    Args:
        history: A callback's history.
        layers: Places in the log keys, such as ``train`` and ``train/backbone.3``.
        prefix: First part of the log keys.
    """
    panels = [
        ("NC1: tr(Σ_W Σ_B⁺) / k", "nc1", "dimensionless"),
        ("NC2: equiangularity, signed", "nc2_equiangularity_signed", "dimensionless"),
        ("NC2: spread of class-mean norms", "nc2_equinorm", "dimensionless"),
        ("NC4: nearest class mean", "ncc_accuracy", "share of samples"),
    ]
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    for axes, (title, name, unit) in zip(figure.subplots(1, 4), panels, strict=True):
        plot_metric(axes, history, [f"{prefix}/{layer}/{name}" for layer in layers], title, unit)
        for line, layer in zip(axes.lines, layers, strict=True):
            line.set_label(layer.partition("/")[2] or "classifier's input")
        axes.legend(frameon=False, fontsize=7)
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
            figure = Figure(figsize=(5.4, 4.6), layout="constrained")
            figures["/".join(["class_mean_cosines", *key.split("/")[1:-1]])] = figure
            plot_cosines(figure.subplots(), value)
    layers = [place for place in splits_with(latest, prefix, "nc1") if place.startswith("train")]
    if len(layers) > 1:
        figures["layers"] = layers_figure(history, layers, prefix)
    for split in ("train", "val"):
        if f"{prefix}/{split}/nc3" in latest:
            figures["collapse" if split == "train" else f"collapse_{split}"] = collapse_figure(
                history, latest, prefix, split
            )
    return save_all(figures, folder)
