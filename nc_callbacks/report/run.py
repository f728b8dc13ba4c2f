"""A run as its folder tells it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from nc_callbacks.metrics import LogKey

Curve = tuple[Int[np.ndarray, " looks"], Float[np.ndarray, " looks"]]
"""Epochs, counted from 1, and what was logged after each."""


@dataclass(frozen=True)
class Looks:
    """A vector or a matrix over the looks that were kept."""

    epochs: Int[np.ndarray, " looks"]
    """Counted from 1."""
    values: Float[np.ndarray, "looks ..."]
    step: int = 1
    """How many classes an entry stands for."""


@dataclass(frozen=True)
class Run:
    """One run, as far as its folder tells."""

    name: str
    """Its folder's name; of a sweep, the path below the sweep's folder."""
    folder: Path
    status: str = "finished"
    """``finished``, ``stopped``, ``failed``, ``unfinished`` where there is no summary, or ``unreadable``."""
    error: str = ""
    overrides: dict[str, str] = field(default_factory=dict)
    config_text: str = ""
    """Hydra's configuration, as YAML."""
    config: dict[str, Any] = field(default_factory=dict)
    """The same, read."""
    epochs: int | None = None
    seconds: float | None = None
    versions: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    """Last value of each log key in the summary of a run that finished; NaN where it was not finite."""
    curves: dict[str, Curve] = field(default_factory=dict)
    """Each log key over epochs."""
    looks: dict[str, Looks] = field(default_factory=dict)
    """Vectors and matrices over epochs, by log key."""

    @property
    def has_no_end(self) -> bool:
        """Whether nothing tells if it ended: no summary, in a folder that is not of our training script."""
        return self.status == "unfinished" and not self.config_text

    @property
    def final(self) -> dict[str, float]:
        """Last value of each log key: the summary's, or else the last that was logged."""
        return {key: float(values[-1]) for key, (_, values) in self.curves.items()} | self.metrics

    def choice(self, group: str) -> dict[str, Any]:
        """A group of the configuration, such as ``model``; empty where it is none."""
        found = self.config.get(group)
        return found if isinstance(found, dict) else {}


def keys_of(runs: list[Run], name: str, split: str) -> list[LogKey]:
    """Log keys of a metric's final values at the classifier's input, one a loader where there are several."""
    keys = map(LogKey.parse, dict.fromkeys(text for run in runs for text in run.final))
    found = (key for key in keys if key.prefix == "nc" and not key.layer and (key.name, key.split) == (name, split))
    return sorted(found, key=lambda key: -1 if key.loader is None else key.loader)


def varying(runs: list[Run]) -> list[str]:
    """Names of the overrides that differ between runs, in the order of the first run that has them."""
    names = dict.fromkeys(name for run in runs for name in run.overrides if not name.startswith("hydra"))
    return [name for name in names if len({run.overrides.get(name) for run in runs}) > 1]
