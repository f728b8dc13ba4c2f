"""How far a sweep is whose runs follow each other."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from rich.console import Console

from nc_callbacks.report.page import duration


class SweepProgress:
    """Says before each run which one it is, and how long the rest may take.

    Args:
        total: How many runs there will be; None where that is not known.
    """

    def __init__(self, total: int | None) -> None:
        self.total = total
        self.done = 0
        """Runs that have ended."""
        self.began = time.perf_counter()

    def say(self, what: str) -> None:
        """Print one line."""
        line = self.line(time.perf_counter() - self.began, what)
        Console().print(line, soft_wrap=True, highlight=False, markup=False)

    def line(self, seconds: float, what: str) -> str:
        """The line of the run that starts after so many seconds.

        Example:
            >>> progress = SweepProgress(4)
            >>> progress.line(0, "seed=0")
            'Run 1 of 4: seed=0'
            >>> progress.done = 1
            >>> progress.line(10, "seed=1")
            'Run 2 of 4, about 30 s left: seed=1'
        """
        text = f"Run {self.done + 1}"
        if self.total is not None:
            text += f" of {self.total}"
            if self.done:
                text += f", about {duration(seconds / self.done * (self.total - self.done))} left"
        return f"{text}: {what}" if what else text


def number_of_runs(sweeper: Any, overrides: Sequence[str]) -> int | None:
    """How many runs Hydra's own sweeper makes of the overrides; None for other sweepers.

    Example:
        >>> from omegaconf import OmegaConf
        >>> sweeper = OmegaConf.create({"_target_": "hydra.BasicSweeper", "params": {"seed": "0,1"}})
        >>> number_of_runs(sweeper, ["model=cnn,mlp", "trainer.max_epochs=range(1,4)"])
        12
    """
    if not str(sweeper.get("_target_", "")).endswith("BasicSweeper"):
        return None
    params = [f"{name}={value}" for name, value in (sweeper.get("params") or {}).items()]
    parsed = OverridesParser.create().parse_overrides([*params, *overrides])
    swept = [override for override in parsed if override.is_sweep_override()]
    if not all(override.is_discrete_sweep() for override in swept):
        return None
    return math.prod(len(list(override.sweep_iterator())) for override in swept)
