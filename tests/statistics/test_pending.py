"""Small batches wait: what is read is exact at any time, however the batches fall."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from nc_callbacks.functional import nc1
from nc_callbacks.statistics import ClassStatistics, pending
from tests import reference
from tests.statistics.common import COVARIANCES, assert_moments, dataset, gathered

SIZES = [3, 1, 20, 0, 9, 40, 2, 21]
"""Of batches; together the 96 samples of the data set."""


@pytest.fixture(params=[1, 8, 1024])
def rows_that_wait(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(pending, "_ROWS", request.param)
    monkeypatch.setattr("nc_callbacks.statistics.adding._ROWS_PER_CLASS", request.param)
    return request.param


@pytest.mark.usefixtures("rows_that_wait")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_any_mixture_of_small_and_large_batches(covariance: Any, dtype: torch.dtype) -> None:
    x, y, k, expected = dataset("unbalanced", dtype)
    metric = ClassStatistics(k, covariance=covariance)
    for features, targets in zip(x.split(SIZES), y.split(SIZES), strict=True):
        metric.update(features, targets)
    assert_moments(metric.compute(), expected)


@pytest.mark.usefixtures("rows_that_wait")
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_states_hold_what_was_added(covariance: Any) -> None:
    x, y, k, _ = dataset("unbalanced")
    metric, seen = ClassStatistics(k, covariance=covariance), 0
    for features, targets in zip(x.split(SIZES), y.split(SIZES), strict=True):
        metric.update(features, targets)
        seen += len(targets)
        assert metric.counts.sum() == seen
        assert_moments(metric.compute(), reference.moments(x[:seen].numpy(), y[:seen].numpy(), k))


@pytest.mark.parametrize("change", ["reset", "load_state_dict", "double"])
def test_rows_that_wait_are_not_added_to_another_state(change: str) -> None:
    x, y, k, expected = dataset("unbalanced")
    metric = gathered(x + 5, y, k)
    if change == "reset":
        metric.reset()
        metric.update(x, y)
    elif change == "load_state_dict":
        other = gathered(x, y, k)
        other.persistent(True)
        metric.load_state_dict(other.state_dict(), strict=False)
    else:
        metric = copy.deepcopy(gathered(x[:50], y[:50], k))
        metric.update(x[50:].double(), y[50:])
    assert_moments(metric.compute(), expected)


def test_what_waits_is_bounded() -> None:
    metric = ClassStatistics(3, covariance="none")
    for _ in range(50):
        metric.update(torch.randn(100, 1000), torch.zeros(100, dtype=torch.long))
        assert metric._pending._rows.nbytes <= 2**20
    assert len(metric.__getstate__()["_pending"]._rows) == 0


@pytest.mark.parametrize("exponent", [-1, -7, -13])
@pytest.mark.parametrize("batches", ["one class a batch", "mixed"])
@pytest.mark.parametrize("covariance", ["pooled", "per_class"])
def test_nc1_is_exact_down_to_full_collapse(exponent: int, batches: str, covariance: Any) -> None:
    # More features than samples of any class; strips, slices and waiting rows are all in use.
    rng = np.random.default_rng(0)
    k, p = 6, 160
    targets = np.repeat(np.arange(k), [700, 300, 100, 50, 9, 1])
    if batches == "mixed":
        targets = rng.permutation(targets)
    means = 20 * rng.normal(size=(k, p)) / p**0.5
    features = means[targets] + (10**exponent * 20 / 9) ** 0.5 * rng.normal(size=(len(targets), p))
    x, y = torch.tensor(features).float(), torch.tensor(targets)
    expected = reference.moments(x.numpy(), targets, k)
    metric = ClassStatistics(k, covariance=covariance)
    for c in range(0, len(y), 50):
        metric.update(x[c : c + 50], y[c : c + 50])
    moments = metric.compute()
    assert moments.within is not None
    value = reference.nc1(expected.within, expected.means)
    assert nc1(moments.within, moments.means).item() == pytest.approx(value, rel=1e-5)
    np.testing.assert_allclose(moments.traces, expected.traces, rtol=1e-5, atol=1e-6 * expected.traces.max())


def test_a_large_finite_number_in_the_first_batch_is_counted_once() -> None:
    x, y, k, _ = dataset("unbalanced")
    x[3, 2] = 1e30
    assert gathered(x, y, k, batch_size=96).compute().nonfinite == 1


def test_devices_that_differ_are_named() -> None:
    with pytest.raises(ValueError, match="must be on one device, got meta, meta and cpu"):
        ClassStatistics(3).update(torch.empty(2, 4, device="meta"), torch.empty(2, dtype=torch.long, device="meta"))
