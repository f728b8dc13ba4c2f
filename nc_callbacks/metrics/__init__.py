"""The registry of metrics, and the log keys under which they are found.

One row per metric, `METRICS`; `register` adds one. `LogKey` makes log keys and reads them.
"""

from nc_callbacks.metrics import alignment, collapse, interpolation, spectrum
from nc_callbacks.metrics.keys import SPLITS, LogKey
from nc_callbacks.metrics.numbers import short
from nc_callbacks.metrics.registry import (
    BAND,
    METRICS,
    SHARE,
    Axis,
    Metric,
    Panel,
    Section,
    metric_of,
    register,
    sections,
    vector_panels,
)
from nc_callbacks.metrics.rounding import is_rounding

__all__ = [
    "BAND",
    "METRICS",
    "SHARE",
    "SPLITS",
    "Axis",
    "LogKey",
    "Metric",
    "Panel",
    "Section",
    "is_rounding",
    "metric_of",
    "register",
    "sections",
    "short",
    "vector_panels",
]

_TEXTS = collapse.TEXTS | alignment.TEXTS | interpolation.TEXTS | spectrum.TEXTS

for _row in (*collapse.ROWS, *alignment.ROWS, *collapse.VECTORS, *interpolation.ROWS, *spectrum.ROWS):
    register(_row, _TEXTS[_row.section])
