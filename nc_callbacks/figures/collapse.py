"""Figures of neural collapse."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from nc_callbacks.figures.depth import makers_of_depth
from nc_callbacks.figures.each import makers_of_matrices, makers_of_numbers, plot_pairs
from nc_callbacks.figures.sizes import classes_of
from nc_callbacks.figures.style import Record, add_legend, keys_of, named, plot_metric, save_all
from nc_callbacks.metrics import METRICS, LogKey

OVERVIEW = (
    ("nc1", "nc1_cdnv"),
    ("nc2_equinorm", "nc2_equinorm_weights"),
    ("nc2_equiangularity", "nc2_equiangularity_weights"),
    ("nc3", "nc3_etf"),
    ("nc4", "accuracy", "ncc_accuracy"),
)
"""Panels of the overview."""

OF_LAYERS = ("nc1", "nc2_equiangularity_signed", "nc2_equinorm", "ncc_accuracy")
"""Panels of the figure of several layers."""


def plot_cosines(axes: Axes, cosines: Tensor, where: str = "", digits: bool = True) -> None:
    """Heat map of the cosines between centred class means, with numbers up to twelve classes.

    Args:
        axes: Where to draw.
        cosines: (k, k), in [−1, 1].
        where: Of what, for the title.
        digits: Whether numbers may stand in the cells.
    """
    plot_pairs(axes, cosines, METRICS["class_mean_cosines"], where, digits=digits)


def collapse_figure(
    history: Sequence[Record], latest: Record, prefix: str = "nc", split: str = "train", loader: int | None = None
) -> Figure:
    """One picture of collapse at the classifier: NC1, NC2, NC3, NC4, accuracies and the cosines of the class means."""
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    figure.suptitle(LogKey("", split, "", loader).title)
    grid = figure.subplots(2, 3)
    for axes, names in zip(grid.flat, OVERVIEW, strict=False):
        keys = [LogKey(name, split, "", loader, prefix) for name in names]
        first = METRICS[names[0]]
        plot_metric(axes, history, keys, first.heading, first.unit, all(METRICS[name].log for name in names))
        for line, name in zip(axes.lines, names, strict=True):
            line.set_label(METRICS[name].label)
        add_legend(axes)
    cosines = latest.get(str(LogKey("class_mean_cosines", split, "", loader, prefix)))
    if cosines is None:
        grid.flat[-1].set_axis_off()
    else:
        # A third of the figure has no room for them.
        plot_cosines(grid.flat[-1], cosines, digits=False)
    return figure


def layers_figure(history: Sequence[Record], layers: Sequence[str], prefix: str = "nc") -> Figure:
    """Collapse at several layers over epochs, in the form of Lindegaard's Fig. 2.

    Args:
        history: A callback's history.
        layers: Places in the log keys, such as ``train`` and ``train/backbone.3``.
        prefix: First part of the log keys.
    """
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(OF_LAYERS)), OF_LAYERS, strict=True):
        keys = [LogKey.at(layer, name, prefix) for layer in layers]
        plot_metric(axes, history, keys, METRICS[name].title, METRICS[name].unit, METRICS[name].log)
        for line, key in zip(axes.lines, keys, strict=True):
            line.set_label(key.layer or "classifier's input")
        add_legend(axes)
    return figure


def save_collapse_figures(
    history: Sequence[Record], latest: Record, folder: Path, prefix: str = "nc", formats: Sequence[str] = ("png",)
) -> list[Path]:
    """Save a figure for each metric over epochs, each matrix of cosines, the overview ``collapse.png``, and ``depth``.

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
        **makers_of_numbers(history, prefix, classes_of(latest, "train", prefix)),
        **makers_of_matrices(latest, prefix),
    }
    layers = [key.where for key in keys_of([latest], "nc1", prefix) if key.split == "train"]
    if len(layers) > 1:
        figures["layers"] = partial(layers_figure, history, layers, prefix)
    figures |= makers_of_depth(history, prefix)
    for key in keys_of([latest], "nc3", prefix):
        name = "collapse" if key.split == "train" else named("collapse", key)
        figures[name] = partial(collapse_figure, history, latest, prefix, key.split, key.loader)
    return save_all(figures, folder, formats)
