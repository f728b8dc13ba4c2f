"""Figures of several runs, in the form of the papers' figures."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nc_callbacks.figures.run_names import class_names, data_name, model_name
from nc_callbacks.figures.spectrum import plot_spectra
from nc_callbacks.figures.style import LINES, MAX_LINES, add_legend, label_axes, plot_per_class
from nc_callbacks.figures.ticks import logarithmic
from nc_callbacks.figures.transfer import plot_accuracies, plot_steps
from nc_callbacks.metrics import METRICS, LogKey, short


def near_optimality_grid(runs: Sequence[Any]) -> Figure:
    """‖m_c‖², m_cᵀm_c' and σ²₁, σ²₂ of each class at the last look, one row per run (Seddik & Tamaazousti, Fig. 1).

    Args:
        runs: Runs as `nc_callbacks.runs.folder.read` gives them; those with ``mu1_per_class`` and its companions.
    """
    figure = Figure(figsize=(9, 3 * len(runs)), layout="constrained")
    panels = (
        ("class means", (("mu1", "‖m_c‖²"), ("mu2", "mean of m_cᵀm_c'"))),
        ("class covariances", (("sigma1", "σ²₁, diagonal"), ("sigma2", "σ²₂, off diagonal"))),
    )
    for row, run in zip(figure.subplots(len(runs), 2, squeeze=False), runs, strict=True):
        for axes, (title, names) in zip(row, panels, strict=True):
            for (name, label), line, marker in zip(names, LINES, "ov", strict=False):
                values = run.looks[_key(f"{name}_per_class")].values[-1]
                axes.plot(values, marker, color=line["color"], label=f"{label}, mean {short(np.nanmean(values))}")
                axes.axhline(np.nanmean(values), color=line["color"], ls=line["linestyle"], lw=1)
            low, high = axes.get_ylim()
            axes.set_ylim(top=high + 0.3 * (high - low))  # room for the legend
            axes.legend(frameon=False, fontsize=8, loc="upper left")
            where = f"{data_name(run)}, {run.config['model']['activation']}"
            label_axes(axes, f"{where}: {title}", "squared features", horizontal="class")
            if len(named := class_names(run)) in range(1, MAX_LINES + 1):
                axes.set_xticks(range(len(named)), named, rotation=30, ha="right", fontsize=8)
    return figure


def cosine_and_accuracy_grid(runs: Sequence[Any]) -> Figure:
    """Cos(w_c, μ_c) over epochs, accuracies with W and with M̄: one column per data set (Seddik & Tamaazousti, Fig. 2).

    Two rows an activation. Accuracies of the training split are solid, of the validation split dashed.

    Args:
        runs: Runs as `nc_callbacks.runs.folder.read` gives them.
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
        cosines = run.looks[_key("wm_cosine_per_class")]
        plot_per_class(upper, list(cosines.epochs), cosines.values, f"{data_name(run)}, {activation}", "Cos(w_c, μ_c)")
        upper.set_ylim(top=1)
        _one_legend(upper, class_names(run), columns=4)
        _plot_accuracies(lower, run, f"{data_name(run)}, {activation}")
    return figure


def _one_legend(axes: Axes, names: Sequence[str] = (), columns: int = 2) -> None:
    """A legend below, with one entry a label where several seeds draw the same; lines take their classes' names."""
    for c, name in enumerate(names):
        for line in axes.lines:
            if line.get_label() == f"class {c}":
                line.set_label(name)
    seen: set[object] = set()
    for line in axes.lines:
        if line.get_label() in seen:
            line.set_label("_repeated")
        seen.add(line.get_label())
    add_legend(axes, columns)


def _plot_accuracies(axes: Axes, run: Any, title: str) -> None:
    for name, label, line in (("accuracy", "W", LINES[0]), ("accuracy_centred_means", "M̄", LINES[1])):
        for split, style in (("train", "-"), ("val", "--")):
            epochs, values = run.curves[_key(name, split)]
            axes.plot(epochs, values, style, color=line["color"], label=f"{label}, {split}", lw=1.4)
    label_axes(axes, title, "accuracy")
    _one_legend(axes, columns=4)


def interpolation_grid(runs: Sequence[Any]) -> Figure:
    """How far outputs quasi-interpolate the labels over epochs: one column per data set (Lindegaard, Fig. 1).

    Rows: ε_avg and (k − 1) ε̃_avg (the average condition asks that they agree), then the spreads std/mean of ε and ε̃
    (Assumption 1 asks that they vanish); a colour a model. A dotted line marks the first look without training error.

    Args:
        runs: Runs as `nc_callbacks.runs.folder.read` gives them.
    """
    sets = list(dict.fromkeys(data_name(run) for run in runs))
    figure = Figure(figsize=(1 + 4.2 * len(sets), 8.4), layout="constrained")
    grid = figure.subplots(3, len(sets), squeeze=False)
    lines = dict(zip(dict.fromkeys(map(model_name, runs)), cycle(LINES), strict=False))
    for run in runs:
        averages, *spreads = grid[:, sets.index(data_name(run))]
        model, colour = model_name(run), lines[model_name(run)]["color"]
        epochs, epsilon = run.curves[_key("sqi_epsilon")]
        _, gap = run.curves[_key("sqi_gap")]
        averages.plot(epochs, epsilon, "-", color=colour, label=f"{model}: ε")
        averages.plot(epochs, epsilon - gap, "--", color=colour, label=f"{model}: (k − 1) ε̃")
        label_axes(averages, f"{data_name(run)}: averages", "output")
        names = {"sqi_epsilon_rel_std": "ε", "sqi_epsilon_off_rel_std": "ε̃"}
        for axes, (name, symbol) in zip(spreads, names.items(), strict=True):
            epochs, values = run.curves[_key(name)]
            axes.plot(epochs, np.abs(values), color=colour, label=model)
            logarithmic(axes)
            label_axes(axes, f"{data_name(run)}: spread of {symbol}", "std / |mean|")
        for axes in grid[:, sets.index(data_name(run))]:
            _mark_terminal_phase(axes, run, colour, f"{model}: no training error")
            axes.legend(frameon=False, fontsize=8)
    return figure


def layers_grid(runs: Sequence[Any]) -> Figure:
    """Collapse at the classifier's input and one layer down over epochs, one row per run (Lindegaard, Fig. 2).

    A dotted line marks the first look without training error.

    Args:
        runs: Runs as `nc_callbacks.runs.folder.read` gives them.
    """
    figure = Figure(figsize=(16, 3.4 * len(runs)), layout="constrained")
    names = ("nc1", "nc2_equiangularity_signed", "nc2_equinorm", "ncc_accuracy")
    for row, run in zip(figure.subplots(len(runs), 5, squeeze=False), runs, strict=True):
        row[0].plot(*run.curves["train/loss"], **LINES[0])
        logarithmic(row[0])
        label_axes(row[0], f"{data_name(run)}, {model_name(run)}: training loss", "squared error")
        for axes, name in zip(row[1:], names, strict=True):
            for key, line in zip(_of_layers(run.curves, name), cycle(LINES), strict=False):
                epochs, values = run.curves[str(key)]
                label = key.layer or "classifier's input"
                axes.plot(epochs, 1 - values if name == "ncc_accuracy" else values, label=label, **line)
            if name == "nc1":
                logarithmic(axes)
            label_axes(axes, METRICS[name].title, METRICS[name].unit)
        label_axes(row[-1], "NC4: nearest class mean", "share misclassified")
        for axes in row:
            _mark_terminal_phase(axes, run, "0.4")
        for axes in row[1:]:
            axes.legend(frameon=False, fontsize=7)
    return figure


def spectrum_grid(runs: Sequence[Any]) -> Figure:
    """Singular values and cumulative explained variance at the last look, one row per run (Lindegaard, Fig. 3).

    A dotted line marks k − 1 directions.

    Args:
        runs: Runs as `nc_callbacks.runs.folder.read` gives them.
    """
    figure = Figure(figsize=(9, 3.4 * len(runs)), layout="constrained")
    for row, run in zip(figure.subplots(len(runs), 2, squeeze=False), runs, strict=True):
        keys = _of_layers(run.looks, "explained_variance")
        spectra = {key.layer or "classifier's input": run.looks[str(key)].values[-1] for key in keys}
        plot_spectra(row, spectra, f"{data_name(run)}, {model_name(run)}", num_classes(run))
    return figure


def samples_table(runs: Sequence[Any]) -> Figure:
    """ε and ε̃, times 10³, of a few samples at the last look, a table a run (Lindegaard, Table 1).

    Args:
        runs: Runs as `nc_callbacks.runs.folder.read` gives them; those with ``sqi_samples``.
    """
    figure = Figure(figsize=(11, 2.4 * len(runs)), layout="constrained")
    for axes, run in zip(figure.subplots(len(runs), 1, squeeze=False)[:, 0], runs, strict=True):
        table = run.looks[_key("sqi_samples")].values[-1]
        header = ["sample", "label", "ε · 10³", *(f"ε̃ · 10³, {c}" for c in range(table.shape[1] - 3))]
        rows = [
            [f"{sample:.0f}", f"{label:.0f}", *("" if np.isnan(error) else f"{1000 * error:.1f}" for error in errors)]
            for sample, label, *errors in table
        ]
        axes.table(rows, colLabels=header, loc="center").scale(1, 1.4)
        axes.set_title(f"{data_name(run)}, {model_name(run)}: errors of samples, by class of the output", fontsize=10)
        axes.set_axis_off()
    return figure


def collapse_grid(runs: Sequence[Any]) -> Figure:
    """NC1 to NC4 over epochs, one column per run (Papyan, Han & Donoho 2020, Figs. 2 to 7).

    A dotted line marks the first look without training error.

    Args:
        runs: Runs as `nc_callbacks.runs.folder.read` gives them.
    """
    panels = (
        ("nc1",),
        ("nc2_equinorm", "nc2_equinorm_weights"),
        ("nc2_equiangularity", "nc2_equiangularity_weights"),
        ("nc3",),
        ("nc4",),
    )
    figure = Figure(figsize=(1 + 4 * len(runs), 13), layout="constrained")
    for column, run in zip(figure.subplots(len(panels), len(runs), squeeze=False).T, runs, strict=True):
        for axes, names in zip(column, panels, strict=True):
            for name, line in zip(names, LINES, strict=False):
                axes.plot(*run.curves[_key(name)], label=METRICS[name].label, **line)
            if "nc4" not in names:
                logarithmic(axes)
            metric = METRICS[names[0]]
            title = metric.title if len(names) == 1 else metric.heading
            label_axes(axes, f"{data_name(run)}: {title}", metric.unit)
            _mark_terminal_phase(axes, run, "0.4")
            if len(names) > 1:
                axes.legend(frameon=False, fontsize=8)
    return figure


def transfer_grid(runs: Sequence[Any]) -> Figure:
    """Four heads on noisy targets, one column per data set (Seddik & Tamaazousti, Fig. 3).

    Rows: accuracy over the variance of the noise; accuracy over optimiser steps at each of the variances whose curves
    were asked for.

    Args:
        runs: Runs as `nc_callbacks.runs.folder.read` gives them; those of the task `transfer_noise`.
    """
    variances = runs[0].config["task"]["curve_variances"]
    figure = Figure(figsize=(1 + 4.4 * len(runs), 3.4 * (1 + len(variances))), layout="constrained")
    for column, run in zip(figure.subplots(1 + len(variances), len(runs), squeeze=False).T, runs, strict=True):
        tables = [_numbers(run.folder / f"{name}.csv") for name in ("accuracy", "curves")]
        plot_accuracies(column[0], tables[0], f"{data_name(run)}: heads on noisy targets")
        for axes, variance in zip(column[1:], variances, strict=True):
            own = [row for row in tables[1] if row["variance"] == variance]
            plot_steps(axes, own, f"{data_name(run)}: σ² = {variance:g}")
    return figure


def _key(name: str, split: str = "train") -> str:
    return str(LogKey(name, split))


def _of_layers(found: Iterable[str], name: str) -> list[LogKey]:
    """Keys of a metric of the training split, of every layer."""
    keys = map(LogKey.parse, found)
    return [key for key in keys if (key.prefix, key.split, key.name) == ("nc", "train", name)]


def _numbers(path: Path) -> list[dict[str, Any]]:
    """Rows of a CSV file with a text column ``method``."""
    with open(path, newline="") as file:
        return [
            {key: text if key == "method" else float(text) for key, text in row.items()} for row in csv.DictReader(file)
        ]


def _mark_terminal_phase(axes: Axes, run: Any, colour: str, label: str = "no training error") -> None:
    """A dotted line at the first look without training error."""
    terminal = [epoch for epoch, value in zip(*run.curves[_key("tpt")], strict=True) if value == 1]
    if terminal:
        axes.axvline(terminal[0], color=colour, lw=0.8, ls=":", label=label)


def num_classes(run: Any) -> int:
    """k."""
    return len(run.looks[_key("counts")].values[-1])
