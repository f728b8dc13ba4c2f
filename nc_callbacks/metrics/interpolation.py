"""The metrics of `QuasiInterpolation`."""

from __future__ import annotations

import math
from functools import partial

from nc_callbacks.metrics.registry import Metric

OUTPUT = "output (a label is 1)"
INF = math.inf

_row = partial(Metric, section="SQI", callback="QuasiInterpolation", source="Lindegaard 2021", projected=True)
_mean = partial(
    _row, panel="Average errors", unit=OUTPUT, ideal=0, toward="ideal", log=True, definition="means of ε and of ε̃"
)
_balance = "ε_avg / ((k−1) ε̃_avg); ε_avg − (k−1) ε̃_avg"
_relative = partial(_row, panel="Spread relative to the mean", ideal=0, toward="ideal", log=True)
_spread = partial(
    _row, panel="Spread", unit=OUTPUT, range=(0, INF), ideal=0, toward="down", log=True, definition="std of ε and of ε̃"
)
_over_all = "std / mean over all samples (and classes) of ε and of ε̃"

ROWS = (
    _mean("sqi_epsilon", label="ε", title="Mean of ε"),
    _mean("sqi_epsilon_off", label="ε̃", title="Mean of ε̃"),
    _row(
        "sqi_ratio", panel="Ratio ε / ((k−1) ε̃)", label="ratio", ideal=1, toward="ideal", definition=_balance,
        title="Ratio ε / ((k−1) ε̃)",
    ),
    _row(
        "sqi_gap", panel="Gap ε − (k−1) ε̃", label="gap", unit=OUTPUT, ideal=0, toward="ideal", definition=_balance,
        title="Gap ε − (k−1) ε̃",
    ),
    _relative("sqi_epsilon_rel_std", label="ε", definition=_over_all, title="Spread of ε relative to its mean"),
    _relative("sqi_epsilon_off_rel_std", label="ε̃", definition=_over_all, title="Spread of ε̃ relative to its mean"),
    _relative(
        "sqi_epsilon_off_sample_rel_std", label="ε̃ within a sample", definition="√(mean_i var_c ε̃_{i,c}) / ε̃_avg",
        title="Spread of ε̃ within a sample relative to its mean",
    ),
    _spread("sqi_epsilon_std", label="ε", title="Spread of ε"),
    _spread("sqi_epsilon_off_std", label="ε̃", title="Spread of ε̃"),
    _row(
        "sqi_samples", unit=OUTPUT, axis="sample", splits=("train",), on_demand="samples",
        definition="index, label, ε, and ε̃ by class of the samples asked for, with `samples=`", title="Samples",
    ),
)  # fmt: skip

TEXTS = {
    "SQI": "Symmetric quasi-interpolation of the labels: ε is what an output lacks at the label, ε̃ what it has "
    "elsewhere. On average ε = (k−1) ε̃ (ratio 1, gap 0); in the strict form the spreads are 0 as well."
}
