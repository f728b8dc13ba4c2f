"""The registry of metrics, and the log keys under which they are found.

One row a metric, `METRICS`; `register` adds one. `LogKey` makes log keys and reads them.
"""

from nc_callbacks.metrics import alignment, collapse, interpolation, spectrum
from nc_callbacks.metrics.keys import SPLITS, LogKey
from nc_callbacks.metrics.registry import (
    METRICS,
    Axis,
    Metric,
    Panel,
    Section,
    metric_of,
    register,
    sections,
    vector_panels,
)

__all__ = [
    "METRICS",
    "SPLITS",
    "Axis",
    "LogKey",
    "Metric",
    "Panel",
    "Section",
    "metric_of",
    "register",
    "sections",
    "vector_panels",
]

for _room in (collapse, alignment, interpolation, spectrum):
    for _row in _room.ROWS:
        register(_row, _room.TEXTS[_row.section])
