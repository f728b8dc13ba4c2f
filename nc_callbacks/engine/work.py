"""The memory and time that a look through further layers takes, found out on the batch that is tried."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from nc_callbacks.probe import Batch, Head
from nc_callbacks.statistics import ClassStatistics, Covariance, state_bytes

_ROWS, _BYTES, _FEATURES = 1024, 16 * 2**20, 1024
"""Rows, their memory, and features that statistics are timed on at most."""


def now(device: torch.device) -> float:
    """Seconds, when the device is through with what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass(frozen=True)
class Work:
    """Of a pass through the classifier's input and further layers.

    Args:
        batch: The one that was tried.
        head: The classifier.
        layers: Features and covariance of each layer.
        splits: Splits of which a look keeps the moments until it ends.
        ranks: Processes that share the data.
        forward: Seconds that the model took for the batch.
    """

    batch: Batch
    head: Head
    layers: Mapping[str, tuple[int, Covariance]]
    splits: int
    ranks: int
    forward: float

    def said(self, batches: float, max_features: int | None) -> str:
        """A sentence on how many layers there are, how wide, what memory they take, and what time a pass.

        Args:
            batches: Of the training split; 0 or infinity where that is not known.
            max_features: As it was given.
        """
        further = [name for name in self.layers if name != self.head.name]
        widest = max(further, key=lambda name: self.layers[name][0])
        memory = sum(
            state_bytes(self.head.num_classes, p, covariance, self.ranks, self.splits - 1)
            for p, covariance in self.layers.values()
        )
        seconds = self.forward + len(self.batch.targets) * self.seconds_a_row()
        projected = [name for name in self.layers if name in self.head.projected]
        narrow = f", {len(projected)} of the layers projected to {max_features}" if projected else ""
        plural = "s" if len(further) > 1 else ""
        whole = f"; the {batches:,.0f} of an epoch {_of(batches * seconds)}" if 0 < batches < math.inf else ""
        return (
            f"Neural collapse: looks at {len(further)} further layer{plural}, the widest {widest!r} with "
            f"{self.layers[widest][0]:,} features{narrow}. Class statistics take up to {memory / 2**20:,.0f} MiB, a "
            f"batch of {len(self.batch.targets)} rows {_of(seconds)}{whole}."
        )

    def seconds_a_row(self) -> float:
        """Time of the statistics of all layers; of wide ones it is taken on a part of their features."""
        return sum(self._seconds_of(name, covariance) for name, (_, covariance) in self.layers.items())

    def _seconds_of(self, name: str, covariance: Covariance) -> float:
        rows, targets = self.batch.features[name], self.batch.targets
        p = rows.shape[1]
        rows = rows[:, :_FEATURES]
        times = max(1, min(_ROWS, _BYTES // (4 * rows.shape[1])) // max(1, len(rows)))
        rows, targets = rows.repeat(times, 1), targets.repeat(times)
        known = (targets >= 0) & (targets < self.head.num_classes)
        # Products of each class take as many operations as of all together.
        kind: Covariance = "none" if covariance == "none" else "pooled"
        statistics = ClassStatistics(self.head.num_classes, covariance=kind, ignore_index=None).to(rows.device)
        started = now(rows.device)
        statistics.update(rows[known], targets[known])
        statistics.settle()
        seconds = (now(rows.device) - started) / max(1, int(known.sum()))
        return seconds * (p / rows.shape[1]) ** (1 if kind == "none" else 2)


def _of(seconds: float) -> str:
    """A time, in the unit that suits it."""
    return (
        f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
    )
