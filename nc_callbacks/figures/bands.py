"""Bands of standard errors around lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nc_callbacks.metrics import BAND, LogKey, metric_of

Record = Mapping[str, Any]
"""An entry of a callback's `history`, or its `latest`."""


@dataclass(frozen=True)
class Band:
    """What lies within standard errors of a line."""

    epochs: list[int]
    low: list[float]
    high: list[float]
    colour: str


def band_of(history: Sequence[Record], key: LogKey, colour: str) -> list[Band]:
    """The band of a metric whose standard error was logged; empty without."""
    error = replace(key, name=metric_of(key.name).error)
    if not error.name:
        return []
    found = [(r["epoch"] + 1, r[str(key)], BAND * r[str(error)]) for r in history if {str(key), str(error)} <= r.keys()]
    if not found:
        return []
    return [Band([at for at, _, _ in found], [v - e for _, v, e in found], [v + e for _, v, e in found], colour)]
