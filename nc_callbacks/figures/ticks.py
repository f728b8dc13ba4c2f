"""Axes whose ticks have the one format of numbers."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, ScalarFormatter

from nc_callbacks.metrics import short


def logarithmic(axes: Axes, which: Literal["x", "y"] = "y") -> None:
    """Make an axis logarithmic, with ticks such as 0.02, 1 and 10⁻⁵."""
    axes.set(**{f"{which}scale": "log"})
    axis = axes.yaxis if which == "y" else axes.xaxis
    axis.set_major_locator(_LogTicks())
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axis.set_minor_locator(NullLocator())


def plain(axes: Axes) -> None:
    """Write each tick of a linear vertical axis whole, such as 2 · 10⁻⁴, with no power of ten for all in a corner."""
    axes.yaxis.set_major_formatter(_WholeNumbers())


class _WholeNumbers(ScalarFormatter):
    """Matplotlib's own labels, but on axes that it would give a common factor or offset."""

    def __init__(self) -> None:
        super().__init__(useOffset=False)
        self.set_scientific(False)

    def format_ticks(self, values: Any) -> list[str]:
        largest = np.abs(values).max(initial=0)
        if largest == 0 or 1e-3 <= largest < 1e5:
            return super().format_ticks(values)
        return [short(value, 6) for value in values]


class _LogTicks(LogLocator):
    """Decades, or 1, 2 and 5 of each, or even steps: so few that each has its number.

    Matplotlib's own are formulas, and minor ticks beside: setting those takes longer than all other drawing.
    """

    def tick_values(self, vmin: float, vmax: float) -> Any:
        low, high = math.log10(vmin), math.log10(vmax)
        decades = np.arange(math.floor(low), math.ceil(high) + 1)
        if high - low > 2.5:
            return 10.0 ** decades[:: math.ceil((high - low) / 6)]
        if high - low > 0.8:
            return np.outer(10.0**decades, (1, 2, 5)).ravel()
        return MaxNLocator(4).tick_values(vmin, vmax)
