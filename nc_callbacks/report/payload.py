"""Data of the page's scripts: the runs' arrays, compact and bounded, as JSON."""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from nc_callbacks.metrics import (
    BAND,
    METRICS,
    LogKey,
    Metric,
    Panel,
    Section,
    is_rounding,
    metric_of,
    sections,
    vector_panels,
)
from nc_callbacks.report.depth import HEAD, depth_of
from nc_callbacks.report.findings import label
from nc_callbacks.report.run import Looks, Run, varying
from nc_callbacks.report.verdict import notes, num_classes, num_features, without_error

MAX_CURVE_VALUES = 2_000_000
"""Values of all curves of a page; beyond, each curve is thinned alike."""

MAX_MATRIX_VALUES = 4_000_000
"""Entries of all matrices of a page; beyond, looks are left out evenly."""

SCALE = 32_767
"""Matrices are stored as 16-bit integers, in units of their largest absolute entry divided by this; NaN is −32,768."""


def build_payload(runs: list[Run], sweep: bool) -> dict[str, Any]:
    """All that the scripts read.

    Args:
        runs: The runs, in order.
        sweep: Whether they are the runs of a sweep.

    Returns:
        What JSON can hold: runs with their curves and looks, and the sections with their panels.
    """
    keep_curve = _kept([len(epochs) for run in runs for epochs, _ in run.curves.values()], MAX_CURVE_VALUES)
    matrices = [looks.values for run in runs for looks in run.looks.values() if looks.values.ndim == 3]
    keep_looks = _kept([len(m) for m in matrices], MAX_MATRIX_VALUES, [m[0].size for m in matrices])
    return {
        "sweep": sweep,
        "band": BAND,
        "parameters": varying(runs),
        "sections": [_section(section, runs) for section in sections()] + _further(runs),
        "lookPanels": [_look_panel(panel, runs) for panel in vector_panels()],
        "runs": [
            {
                "name": run.name,
                "label": label(run, runs),
                "withoutError": without_error(run),
                "numClasses": num_classes(run),
                "parameters": {name: run.overrides.get(name, "") for name in varying(runs)},
                "final": {key: value if math.isfinite(value) else None for key, value in run.final.items()},
                **_curves(run, keep_curve),
                "depth": [] if sweep else depth_of(run),
                "looks": [_looks(key, looks, keep_looks) for key, looks in run.looks.items() if len(looks.epochs)],
            }
            for run in runs
        ],
    }


def thinned(length: int, keep: int) -> Int[np.ndarray, " rows"]:
    """Rows of at most `keep` looks out of `length`, evenly spaced, with the first and the last.

    Example:
        >>> thinned(10, 4).tolist(), thinned(3, 4).tolist()
        ([0, 3, 6, 9], [0, 1, 2])
    """
    return np.linspace(length - 1, 0, min(keep, length)).round().astype(int)[::-1]


def encoded(array: np.ndarray, kind: str) -> str:
    """An array's bytes, little-endian, in base64.

    Example:
        >>> encoded(np.array([1.0]), "<f4")
        'AACAPw=='
    """
    return base64.b64encode(np.ascontiguousarray(array, dtype=kind).tobytes()).decode()


def _kept(lengths: list[int], budget: int, sizes: list[int] | None = None) -> int:
    """How many looks of each curve can stay, given the entries of one look."""
    total = sum(length * size for length, size in zip(lengths, sizes or [1] * len(lengths), strict=True))
    longest = max(lengths, default=0)
    return longest if total <= budget else max(1, longest * budget // total)


def _curves(run: Run, keep: int) -> dict[str, Any]:
    """Curves by log key; most have the same epochs, which are written once."""
    epochs: dict[str, int] = {}
    curves = []
    for key, (at, values) in run.curves.items():
        rows = thinned(len(at), keep)
        place = epochs.setdefault(encoded(at[rows], "<i4"), len(epochs))
        flat = {"flat": True} if is_rounding(values.tolist(), metric_of(LogKey.parse(key).name)) else {}
        curves.append(_place(key) | {"epochs": place, "values": encoded(values[rows], "<f4")} | flat)
    return {"epochs": list(epochs), "curves": curves}


def _looks(key: str, looks: Looks, keep: int) -> dict[str, Any]:
    epochs, values = looks.epochs, looks.values
    kept = _place(key) | {"shape": list(values.shape[1:]), "step": looks.step}
    if values.ndim == 2 or metric_of(LogKey.parse(key).name).axis == "sample":
        return kept | {"epochs": epochs.tolist(), "scale": None, "values": encoded(values, "<f4")}
    rows = thinned(len(epochs), keep)
    scale = float(np.abs(values[np.isfinite(values)]).max(initial=0)) or 1.0
    integers = encoded(_quantised(values[rows], scale), "<i2")
    return kept | {"epochs": epochs[rows].tolist(), "scale": scale / SCALE, "values": integers}


def _place(text: str) -> dict[str, Any]:
    """Parts of the log key; `own` is true of what no callback logged, `place` is the layer's name."""
    key = LogKey.parse(text)
    prefix = f"{key.prefix}: " if key.prefix not in ("", "nc") else ""
    place = prefix + (key.layer or HEAD)
    return {"name": key.name, "split": key.data, "place": place, "own": _is_own(key)}


def _is_own(key: LogKey) -> bool:
    """Whether the training module logged it: its accuracy is another than ours, gathered while the weights move."""
    return not key.is_ours or key.name not in METRICS


def _quantised(values: Float[np.ndarray, "..."], scale: float) -> np.ndarray:
    finite = np.isfinite(values)
    return np.where(finite, np.round(np.where(finite, values, 0) / scale * SCALE), -SCALE - 1)


def _section(section: Section, runs: list[Run]) -> dict[str, Any]:
    # The terminal phase is a line in all charts, and needs none of its own.
    found = {LogKey.parse(key).name for run in runs for key in run.curves} - {"tpt"}
    note = notes(runs[0]).get(section.title, "") if len(runs) == 1 else ""
    return {
        "title": section.title,
        "text": f"{section.text} {note}".rstrip(),
        "panels": [_panel(panel, found, runs) for panel in section.panels if found & {m.name for m in panel.metrics}],
    }


def _panel(panel: Panel, found: set[str], runs: list[Run]) -> dict[str, Any]:
    metrics = [
        {"name": metric.name, "label": metric.label, "ideal": _ideal(metric, runs), "error": metric.error}
        for metric in panel.metrics
        if metric.name in found
    ]
    return {"title": panel.title, "unit": panel.unit, "log": panel.log, "metrics": metrics}


def _ideal(metric: Metric, runs: list[Run]) -> float | None:
    """The value at collapse, where it is one for all runs."""
    if not callable(metric.ideal):
        return metric.ideal
    sizes = {(num_classes(run), num_features(run)) for run in runs}
    ((k, p),) = sizes if len(sizes) == 1 else ((None, None),)
    # Without a spectrum p is not known; what depends on it needs k − 1 of them at the most.
    return None if k is None else metric.value_at_collapse(k, k if p is None else p)


def _look_panel(panel: Panel, runs: list[Run]) -> dict[str, Any]:
    first = panel.metrics[0]
    return {
        "title": panel.title,
        "unit": panel.unit,
        "log": panel.log,
        "axis": first.axis,
        "limit": first.range[1] if math.isfinite(first.range[1]) else None,
        "ideal": _ideal(first, runs),
        "overEpochs": first.over_epochs,
        "metrics": [{"name": metric.name, "label": metric.label} for metric in panel.metrics],
    }


def _further(runs: list[Run]) -> list[dict[str, Any]]:
    """A section for what the training module itself logged."""
    keys = [LogKey.parse(key) for run in runs for key in run.curves]
    names = {key.name for key in keys if _is_own(key)}
    panels = [
        {"title": name, "unit": "", "log": "loss" in name, "metrics": [{"name": name, "label": name}]}
        for name in sorted(names)
    ]
    text = "What the module itself logged while it trained."
    return [{"title": "Training", "text": text, "own": True, "panels": panels}] if panels else []
