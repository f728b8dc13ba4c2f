"""What counts as rounding: by the metric's own scale, or against 1."""

import math

import pytest

from nc_callbacks.metrics import METRICS, is_rounding


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("sqi_gap", [1e-8, -3e-8, 2e-8], True),
        ("sqi_gap", [1e-2, 2e-2], False),
        ("sqi_ratio", [1.0, 1.0000002, math.nan, 0.9999998], True),
        ("sqi_ratio", [1.0, 1.001], False),
        # Features may be as small as they like, and what vanishes at collapse as well.
        ("mu2", [1e-9, 2e-9], False),
        ("mu2", [3.0, 3.0000001], True),
        ("nc1", [1e-9, 1e-10], False),
        # One value is no curve.
        ("sqi_ratio", [1.0, math.nan], False),
        ("accuracy", [], False),
    ],
)
def test_rounding(name, values, expected):
    assert is_rounding(values, METRICS[name]) == expected
