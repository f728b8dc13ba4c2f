"""Figures of many runs at once: a point a run, or the mean and spread over seeds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nc_callbacks.figures.run_names import data_name, model_name
from nc_callbacks.figures.style import LINES, label_axes
from nc_callbacks.metrics import LogKey

_REFERENCE = re.compile(r"\$\{([\w.]+)\}")
"""To a key of the same configuration."""


def alignment_scatter(runs: Sequence[Any]) -> Figure:
    """The mean W–M̄ cosine against μ₂/μ₁ at the last look, a point a run; a mark for the runs that differ by seed alone.

    Args:
        runs: Runs as `nc_callbacks.runs.folder.read` gives them; those with ``mu_ratio`` and ``wm_cosine``.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for (label, group), marker, line in zip(by_settings(runs).items(), cycle("ov^sDP*X<>"), cycle(LINES), strict=False):
        x, y = ([run.curves[_key(name)][1][-1] for run in group] for name in ("mu_ratio", "wm_cosine"))
        axes.plot(x, y, marker, color=line["color"], label=label, ms=7, alpha=0.8)
    label_axes(axes, "Alignment and the common part of class means, last look", "mean Cos(w_c, μ_c)", "μ₂/μ₁")
    axes.xaxis.set_major_locator(MaxNLocator())
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def means_over_seeds(runs: Sequence[Any]) -> Figure:
    """W–M̄ cosine and what M̄ loses against W over epochs: means of runs that differ by seed alone.

    Bands are a standard deviation over seeds to either side, where there are two or more. Epochs are those that all of
    a setting's runs have.

    Args:
        runs: Runs as `nc_callbacks.runs.folder.read` gives them.
    """
    figure = Figure(figsize=(15, 4.4), layout="constrained")
    cosine, *losses = figure.subplots(1, 3)
    for number, (label, group) in enumerate(by_settings(runs).items()):
        line = _line(number)
        name = f"{label} ({len(group)} seeds)" if len(group) > 1 else label
        _plot_mean(cosine, [_series(run, "wm_cosine") for run in group], name, line)
        for axes, split in zip(losses, ("train", "val"), strict=True):
            _plot_mean(axes, [_lost(run, split) for run in group], name, line)
    label_axes(cosine, "train: W–M̄ cosine", "mean Cos(w_c, μ_c)")
    for axes, split in zip(losses, ("train", "val"), strict=True):
        label_axes(axes, f"{split}: what M̄ loses against W", "accuracy of W − accuracy of M̄")
        axes.axhline(0, color="0.4", lw=0.8)
    figure.legend(*cosine.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def by_settings(runs: Sequence[Any]) -> dict[str, list[Any]]:
    """Runs that differ by seed alone, by what sets them apart from the others: data, model, and the model's settings.

    Args:
        runs: Runs as `nc_callbacks.runs.folder.read` gives them.
    """
    settings = [_settings(run) for run in runs]
    names = dict.fromkeys(name for each in settings for name in each)
    telling = [name for name in names if len({str(each.get(name)) for each in settings}) > 1]
    groups: dict[str, list[Any]] = {}
    for run, each in zip(runs, settings, strict=True):
        parts = [_part(name, each[name]) for name in telling if name in each]
        groups.setdefault(", ".join(parts) or each["data"], []).append(run)
    return groups


def _settings(run: Any) -> dict[str, Any]:
    model = {name: value for name, value in run.config["model"].items() if name != "_target_"}
    data = {name: run.config["data"][name] for name in ("samples", "batch_size") if name in run.config["data"]}
    settings = {name: _resolved(value, run.config) for name, value in (model | data).items()}
    return {"data": data_name(run), "model": model_name(run), **settings, "epochs": run.epochs}


def _resolved(value: Any, config: Mapping[str, Any]) -> Any:
    """A setting with what it refers to in the same configuration, as far as that is there."""
    for _ in range(10):  # references within references
        if not isinstance(value, str) or not (found := _REFERENCE.search(value)):
            break
        target: Any = config
        for part in found[1].split("."):
            target = target.get(part) if isinstance(target, Mapping) else None
        if target is None:
            break
        value = target if value == found[0] else value.replace(found[0], str(target))
    return value


def _part(name: str, value: Any) -> str:
    if name in ("data", "model", "activation"):
        return str(value)
    if isinstance(value, bool):
        return f"{'' if value else 'no '}{name.replace('_', ' ')}"
    return f"{name.replace('_', ' ')} {value}"


def _line(number: int) -> dict[str, Any]:
    """A colour and a style, sixteen pairs of them."""
    turns, colour = divmod(number, len(LINES))
    return {"color": LINES[colour]["color"], "linestyle": LINES[(colour + turns) % len(LINES)]["linestyle"]}


def _series(run: Any, name: str, split: str = "train") -> dict[int, float]:
    epochs, values = run.curves[_key(name, split)]
    return dict(zip(epochs.tolist(), values.tolist(), strict=True))


def _lost(run: Any, split: str) -> dict[int, float]:
    means = _series(run, "accuracy_centred_means", split)
    return {epoch: value - means[epoch] for epoch, value in _series(run, "accuracy", split).items() if epoch in means}


def _plot_mean(axes: Axes, series: Sequence[dict[int, float]], label: str, line: dict[str, Any]) -> None:
    epochs = sorted(set.intersection(*map(set, series)))
    values = np.array([[each[epoch] for epoch in epochs] for each in series])
    mean = values.mean(0)
    axes.plot(epochs, mean, label=label, lw=1.6, marker="o" if len(epochs) <= 3 else None, **line)
    if len(series) > 1:
        spread = values.std(0, ddof=1)
        axes.fill_between(epochs, mean - spread, mean + spread, color=line["color"], alpha=0.2, lw=0)


def _key(name: str, split: str = "train") -> str:
    return str(LogKey(name, split))
