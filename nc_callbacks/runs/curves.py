"""What a trainer logs, kept for the page of a run, for trainers that write no ``metrics.csv`` there themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from nc_callbacks.runs.tables import write_table


class CurveLogger(Logger):
    """A logger that keeps the last value an epoch of each log key.

    Example:
        >>> curves = CurveLogger()
        >>> curves.log_metrics({"epoch": 0, "val/loss": 0.5}, step=7)
        >>> curves.log_metrics({"epoch": 1, "val/loss": 0.25}, step=15)
        >>> curves.last
        {'val/loss': 0.25}
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[int, dict[str, float]] = {}
        """Values by log key, and ``step``, by epoch counted from 0."""

    @property
    def name(self) -> str:
        """What Lightning calls it."""
        return "curves"

    @property
    def version(self) -> str:
        """Empty: there is one."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """None are kept."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Take numbers at a step."""
        values = dict(metrics)
        if "epoch" in values:
            row = self.rows.setdefault(int(values.pop("epoch")), {})
            row |= {key: float(value) for key, value in values.items()}
            row["step"] = math.nan if step is None else step

    @property
    def last(self) -> dict[str, float]:
        """The last value of each log key."""
        found: dict[str, float] = {}
        for epoch in sorted(self.rows):
            found |= self.rows[epoch]
        return {key: value for key, value in found.items() if key != "step"}

    @property
    def first(self) -> dict[str, float]:
        """The first finite value of each log key."""
        found: dict[str, float] = {}
        for epoch in sorted(self.rows, reverse=True):
            found |= {key: value for key, value in self.rows[epoch].items() if math.isfinite(value)}
        return {key: value for key, value in found.items() if key != "step"}

    def forget_from(self, epoch: int) -> None:
        """Drop this epoch and later ones: of a fit that was cut off and is repeated, or of an earlier one."""
        self.rows = {at: row for at, row in self.rows.items() if at < epoch}

    def write(self, path: Path) -> None:
        """Write a table in the form of Lightning's CSVLogger."""
        keys = dict.fromkeys(key for row in self.rows.values() for key in row if key != "step")
        rows = ({"epoch": epoch} | self.rows[epoch] for epoch in sorted(self.rows))
        write_table(path, ["epoch", "step", *keys], rows)
