"""Metrics of a run over the depth of its network, for the page's scripts."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float

from nc_callbacks.metrics import METRICS, LogKey
from nc_callbacks.metrics.depth import OF_DEPTH, tunnel_of
from nc_callbacks.report.run import Run

HEAD = "classifier's input"
"""As the page calls that place."""


def depth_of(run: Run) -> list[dict[str, Any]]:
    """Of each split with two layers besides the classifier's input: the layers, what is shown, and the tunnel."""
    found: dict[LogKey, dict[str, set[str]]] = {}
    for text in run.curves:
        key = LogKey.parse(text)
        if key.is_ours and key.prefix == "nc" and key.name in OF_DEPTH:
            found.setdefault(replace(key, name="", layer=""), {}).setdefault(key.name, set()).add(key.layer)
    return [_of_split(run, place, names) for place, names in found.items() if max(map(len, names.values())) > 2]


def _of_split(run: Run, place: LogKey, names: dict[str, set[str]]) -> dict[str, Any]:
    layers = _in_order(run, {layer for of_name in names.values() for layer in of_name if layer})
    last = {key: _last_finite(values) for key, (_, values) in run.curves.items()}
    tunnel = tunnel_of(last, layers, place)
    return {
        "split": place.data,
        "places": [*layers, HEAD],
        "metrics": [
            {"name": name, "title": METRICS[name].title, "unit": METRICS[name].unit, "log": METRICS[name].log}
            for name in OF_DEPTH
            if len(names.get(name, ())) > 2
        ],
        "tunnel": tunnel and {"start": tunnel[1], "by": METRICS[tunnel[0]].label},
    }


def _last_finite(values: Float[np.ndarray, " looks"]) -> float:
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if len(finite) else math.nan


def _in_order(run: Run, layers: set[str]) -> list[str]:
    """In the network's order, which the looks have; curves are sorted by name, where the numbers in names tell it."""
    told = dict.fromkeys(LogKey.parse(text).layer for text in run.looks)
    known = [layer for layer in told if layer in layers]
    if len(known) == len(layers):
        return known
    return sorted(layers, key=lambda layer: [(int(n or 0), text) for n, text in re.findall(r"(\d+)|(\D+)", layer)])
