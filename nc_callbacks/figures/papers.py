"""Figures of several runs, in the form of the papers' figures."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nc_callbacks.figures.style import LINES, label_axes, plot_per_class

DATA_NAMES = {
    "digits": "digits",
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
}


def near_optimality_grid(runs: Sequence[Any]) -> Figure:
    """‖m_c‖², m_cᵀm_c' and σ²₁, σ²₂ of each class at the last look, a row a run (Seddik & Tamaazousti, Fig. 1).

    Args:
        runs: What `nc_callbacks.report.read.read` gives; those with ``mu1_per_class`` and its companions.
    """
    figure = Figure(figsize=(9, 3 * len(runs)), layout="constrained")
    panels = (
        ("class means", (("mu1", "‖m_c‖²"), ("mu2", "mean of m_cᵀm_c'"))),
        ("class covariances", (("sigma1", "σ²₁, diagonal"), ("sigma2", "σ²₂, off diagonal"))),
    )
    for row, run in zip(figure.subplots(len(runs), 2, squeeze=False), runs, strict=True):
        for axes, (title, names) in zip(row, panels, strict=True):
            for (name, label), line, marker in zip(names, LINES, "ov", strict=False):
                values = run.looks[f"nc/train/{name}_per_class"].values[-1]
                axes.plot(values, marker, color=line["color"], label=f"{label}, mean {np.nanmean(values):.3g}")
                axes.axhline(np.nanmean(values), color=line["color"], ls=line["linestyle"], lw=1)
            axes.legend(framealpha=1, edgecolor="none", fontsize=8)
            where = f"{data_name(run)}, {run.config['model']['activation']}"
            label_axes(axes, f"{where}: {title}", "squared features", horizontal="class")
    return figure


def cosine_and_accuracy_grid(runs: Sequence[Any]) -> Figure:
    """Cos(w_c, μ_c) over epochs, and accuracies with W and with M̄: a column a data set (Seddik & Tamaazousti, Fig. 2).

    Two rows an activation. Accuracies of the training split are solid, of the validation split dashed.

    Args:
        runs: What `nc_callbacks.report.read.read` gives.
    """
    sets = list(dict.fromkeys(data_name(run) for run in runs))
    activations = list(dict.fromkeys(run.config["model"]["activation"] for run in runs))
    figure = Figure(figsize=(1 + 3.8 * len(sets), 5.4 * len(activations)), layout="constrained")
    grid = figure.subplots(2 * len(activations), len(sets), squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for run in runs:
        activation, column = run.config["model"]["activation"], sets.index(data_name(run))
        upper, lower = grid[2 * activations.index(activation) :, column][:2]
        upper.set_axis_on()
        lower.set_axis_on()
        cosines = run.looks["nc/train/wm_cosine_per_class"]
        plot_per_class(upper, list(cosines.epochs), cosines.values, f"{data_name(run)}, {activation}", "Cos(w_c, μ_c)")
        upper.set_ylim(top=1)
        _plot_accuracies(lower, run, f"{data_name(run)}, {activation}")
    return figure


def _plot_accuracies(axes: Axes, run: Any, title: str) -> None:
    for name, label, line in (("accuracy", "W", LINES[0]), ("accuracy_centred_means", "M̄", LINES[1])):
        for split, style in (("train", "-"), ("val", "--")):
            epochs, values = run.curves[f"nc/{split}/{name}"]
            axes.plot(epochs, values, style, color=line["color"], label=f"{label}, {split}", lw=1.4)
    axes.legend(frameon=False, fontsize=7)
    label_axes(axes, title, "accuracy")


def interpolation_grid(runs: Sequence[Any]) -> Figure:
    """How far outputs quasi-interpolate the labels over epochs: a column a data set (Lindegaard, Fig. 1).

    Rows: ε_avg and (k − 1) ε̃_avg (the average condition asks that they agree), then the spreads std/mean of ε and ε̃
    (Assumption 1 asks that they vanish); a colour a model. A dotted line marks the first look without training error.

    Args:
        runs: What `nc_callbacks.report.read.read` gives.
    """
    sets = list(dict.fromkeys(data_name(run) for run in runs))
    figure = Figure(figsize=(1 + 4.2 * len(sets), 8.4), layout="constrained")
    grid = figure.subplots(3, len(sets), squeeze=False)
    lines = dict(zip(dict.fromkeys(map(model_name, runs)), cycle(LINES), strict=False))
    for run in runs:
        averages, *spreads = grid[:, sets.index(data_name(run))]
        model, colour = model_name(run), lines[model_name(run)]["color"]
        epochs, epsilon = run.curves["nc/train/sqi_epsilon"]
        _, gap = run.curves["nc/train/sqi_gap"]
        averages.plot(epochs, epsilon, "-", color=colour, label=f"{model}: ε")
        averages.plot(epochs, epsilon - gap, "--", color=colour, label=f"{model}: (k − 1) ε̃")
        label_axes(averages, f"{data_name(run)}: averages", "output")
        names = {"sqi_epsilon_rel_std": "ε", "sqi_epsilon_off_rel_std": "ε̃"}
        for axes, (name, symbol) in zip(spreads, names.items(), strict=True):
            epochs, values = run.curves[f"nc/train/{name}"]
            axes.plot(epochs, np.abs(values), color=colour, label=model)
            axes.set_yscale("log")
            label_axes(axes, f"{data_name(run)}: spread of {symbol}", "std / |mean|")
        terminal = [epoch for epoch, value in zip(*run.curves["nc/train/tpt"], strict=True) if value == 1]
        for axes in grid[:, sets.index(data_name(run))]:
            if terminal:
                axes.axvline(terminal[0], color=colour, lw=0.8, ls=":")
            axes.legend(frameon=False, fontsize=8)
    return figure


def data_name(run: Any) -> str:
    """The data set's own name."""
    return DATA_NAMES[run.config["data"]["name"]]


def model_name(run: Any) -> str:
    """``1FC``, ``2FC``, or the model's name in the configuration."""
    name = run.config["model"]["_target_"].rsplit(".", 1)[1]
    return {"conv_1fc": "1FC", "conv_2fc": "2FC"}.get(name, name)
