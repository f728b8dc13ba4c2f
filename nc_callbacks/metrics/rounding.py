"""Where the differences between values are no more than rounding."""

from __future__ import annotations

import math
from collections.abc import Iterable

from nc_callbacks.metrics.registry import Metric

ROUNDING = 1e-5
"""Relative to the values; float32 keeps 1.2e-7, and sums of many terms some digits less."""


def is_rounding(values: Iterable[float], metric: Metric) -> bool:
    """Whether several values of a metric differ by no more than rounding, so that a curve of them shows nothing.

    Metrics of features have no scale but their values', nor have those that vanish on a logarithmic axis; all others
    are measured against 1 (a cosine, a share, a ratio, an output whose label is 1).

    Example:
        >>> from nc_callbacks.metrics import METRICS
        >>> is_rounding([1e-8, -2e-8], METRICS["sqi_gap"]), is_rounding([1e-8, 2e-8], METRICS["nc1"])
        (True, False)
    """
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return False
    own_scale = metric.log or "features" in metric.unit
    scale = max(map(abs, finite), default=0.0)
    return max(finite) - min(finite) <= ROUNDING * (scale if own_scale else max(scale, 1.0))
