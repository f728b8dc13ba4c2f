"""ClassStatistics as it is used: shapes, precisions, copies, states, devices, wrong input."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nc_callbacks import functional
from nc_callbacks.statistics import ClassStatistics
from tests import reference
from tests.statistics.common import (
    COVARIANCES,
    RTOL,
    assert_moments,
    dataset,
    gathered,
)


@pytest.mark.parametrize("shape", [(-1, 6, 1, 1), (-1, 2, 3), (-1, 3, 1, 2)])
def test_maps_are_flattened(shape: tuple[int, ...]) -> None:
    x, y, k, expected = dataset("unbalanced")
    assert_moments(gathered(x.reshape(shape), y, k).compute(), expected)


def test_every_position_of_a_sequence_is_a_sample() -> None:
    x, y, k, expected = dataset("unbalanced")
    assert len(x) == 96
    assert_moments(gathered(x.view(12, 8, -1), y.view(12, 8), k).compute(), expected)
    assert_moments(gathered(x.view(6, 4, 4, -1), y.view(6, 4, 4), k).compute(), expected)


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("ignore_index", [-100, 255, 0])
def test_ignored_samples_leave_no_trace(ignore_index: int, covariance: Any) -> None:
    x, y, k, _ = dataset("unbalanced")
    keep = torch.arange(len(y)) % 3 > 0
    keep &= y != ignore_index
    y = torch.where(keep, y, ignore_index)
    features = torch.where(keep[:, None], x, torch.nan)
    expected = reference.moments(x[keep].numpy(), y[keep].numpy(), k)
    moments = gathered(features, y, k, covariance=covariance, ignore_index=ignore_index).compute()
    assert_moments(moments, expected)
    assert moments.nonfinite == 0


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_given_shift(per_class: bool, covariance: Any) -> None:
    x, y, k, expected = dataset("offset")
    shift = torch.tensor(expected.means if per_class else expected.means.mean(0))
    metric = gathered(x, y, k, covariance=covariance, shift=shift)
    assert_moments(metric.compute(), expected, 1e-6)
    assert torch.equal(metric.shift, shift.float().expand(k, -1))
    assert metric.num_features == x.shape[1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_half_precision_is_accumulated_in_float32(dtype: torch.dtype, covariance: Any) -> None:
    x, y, k, expected = dataset("unbalanced", dtype)
    metric = gathered(x, y, k, covariance=covariance)
    assert metric.sums.dtype == torch.float32
    assert_moments(metric.compute(), expected)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_float64_batch_widens_what_was_gathered(covariance: Any) -> None:
    x, y, k, expected = dataset("unbalanced")
    metric = gathered(x[:30], y[:30], k, covariance=covariance)
    for batch in (x[30:60].double(), x[60:]):
        metric.update(batch, y[30 : 30 + len(batch)] if batch.dtype == torch.float64 else y[60:])
    assert metric.sums.dtype == torch.float64
    assert_moments(metric.compute(), expected)


@pytest.mark.parametrize("num_features", [None, 6])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_reset_forgets_everything(num_features: int | None, covariance: Any) -> None:
    x, y, k, expected = dataset("unbalanced")
    metric = gathered(x.double() + 50, y, k, covariance=covariance, num_features=num_features)
    metric.compute()
    metric.reset()
    assert metric.counts.sum() == metric.squares.sum() == metric.nonfinite == 0
    for batch in (slice(0, 40), slice(40, None)):
        metric.update(x[batch], y[batch])
    assert metric.sums.dtype == torch.float32
    assert_moments(metric.compute(), expected)


def test_size_taken_from_the_first_batch_is_forgotten_by_reset() -> None:
    x, y, k, _ = dataset("unbalanced")
    metric = gathered(x, y, k)
    metric.reset()
    metric.update(x[:, :2], y)
    assert_moments(metric.compute(), reference.moments(x[:, :2].numpy(), y.numpy(), k))


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_empty_batches(covariance: Any) -> None:
    x, y, k, expected = dataset("unbalanced")
    metric = ClassStatistics(k, covariance=covariance)
    for batch in (slice(0, 0), slice(0, 50), slice(0, 0), slice(50, None)):
        metric.update(x[batch], y[batch])
    assert_moments(metric.compute(), expected)


def test_compute_before_update_is_empty() -> None:
    with pytest.warns(UserWarning, match="before the ``update``"):
        moments = ClassStatistics(3, 2).compute()
    assert moments.counts.tolist() == [0, 0, 0]
    assert moments.means.isnan().all()
    assert moments.observed().means.shape == (0, 2)


def test_moments_already_computed_do_not_change() -> None:
    x, y, k, _ = dataset("unbalanced")
    metric = gathered(x[:50], y[:50], k, covariance="per_class")
    first = metric.compute()
    before = copy.deepcopy(first)
    metric.update(x[50:] + 3, y[50:])
    torch.testing.assert_close(dataclasses.asdict(first), dataclasses.asdict(before), equal_nan=True)
    assert metric.compute().counts.sum() == len(x)


def test_merge_after_compute_is_seen_by_the_next_compute() -> None:
    x, y, k, expected = dataset("unbalanced")
    metric = gathered(x[:50], y[:50], k)
    metric.compute()
    metric.merge_state(gathered(x[50:], y[50:], k))
    assert_moments(metric.compute(), expected)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_autocast_does_not_lower_the_precision(covariance: Any) -> None:
    x, y, k, expected = dataset("unbalanced")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        moments = gathered(x, y, k, covariance=covariance).compute()
    assert_moments(moments, expected)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_autocast_does_not_lower_the_precision_of_a_merge(covariance: Any) -> None:
    x, y, k, expected = dataset("unbalanced")
    metric = gathered(x[:50], y[:50], k, covariance=covariance)
    other = gathered(x[50:], y[50:], k, covariance=covariance)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        metric.merge_state(other)
    assert_moments(metric.compute(), expected)


COPIES: dict[str, Callable[[ClassStatistics], ClassStatistics]] = {
    "pickle": lambda metric: pickle.loads(pickle.dumps(metric)),
    "deepcopy": copy.deepcopy,
    "clone": lambda metric: metric.clone(),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_copies_go_their_own_way(how: str, covariance: Any) -> None:
    x, y, k, expected = dataset("unbalanced")
    metric = gathered(x[:50], y[:50], k, covariance=covariance)
    metric.compute()
    other = COPIES[how](metric)
    other.update(x[50:], y[50:])
    assert_moments(other.compute(), expected)
    assert_moments(metric.compute(), reference.moments(x[:50].numpy(), y[:50].numpy(), k))


def test_moments_are_pickled() -> None:
    x, y, k, expected = dataset("unbalanced")
    moments = gathered(x, y, k, covariance="per_class").compute()
    assert_moments(pickle.loads(pickle.dumps(moments)), expected)


@pytest.mark.parametrize("dtype", RTOL)
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_state_dict_round_trip(covariance: Any, dtype: torch.dtype) -> None:
    x, y, k, expected = dataset("offset", dtype)
    metric = gathered(x[:50], y[:50], k, covariance=covariance)
    assert not metric.state_dict()
    metric.persistent(True)
    restored = ClassStatistics(k, covariance=covariance)
    restored.persistent(True)
    restored.load_state_dict(metric.state_dict())
    restored.update(x[50:], y[50:])
    assert_moments(restored.compute(), expected, RTOL[dtype])
    assert metric.counts.sum() == 50


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_calling_the_metric_returns_the_moments_of_the_batch(covariance: Any) -> None:
    x, y, k, expected = dataset("unbalanced")
    metric = ClassStatistics(k, covariance=covariance)
    for batch in (slice(0, 50), slice(50, None)):
        of_batch = metric(x[batch], y[batch])
        assert_moments(of_batch, reference.moments(x[batch].numpy(), y[batch].numpy(), k))
    assert_moments(metric.compute(), expected)


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize(
    ("position", "value"), [(0, torch.nan), (0, -torch.inf), (60, torch.nan), (60, torch.inf), (60, 1e30)]
)
def test_nonfinite_samples_are_counted(position: int, covariance: Any, value: float) -> None:
    x, y, k, _ = dataset("unbalanced")
    x[position, 2] = value
    assert gathered(x, y, k, covariance=covariance).compute().nonfinite == 1


def test_nonfinite_samples_of_merged_parts_are_added() -> None:
    x, y, k, _ = dataset("unbalanced")
    x[[3, 60, 61], 2] = torch.nan
    parts = [gathered(x[:50], y[:50], k), gathered(x[50:], y[50:], k)]
    assert [part.compute().nonfinite for part in parts] == [1, 2]
    assert parts[0].compute().merge(parts[1].compute()).nonfinite == 3
    parts[0].merge_state(parts[1])
    assert parts[0].compute().nonfinite == 3


def test_nonfinite_features_give_nan_metrics_without_raising() -> None:
    x, y, k, _ = dataset("unbalanced")
    x[5] = torch.nan
    moments = gathered(x, y, k, covariance="per_class").compute()
    assert moments.within is not None
    assert functional.nc1(moments.within, moments.means).isnan()
    assert functional.nc1_quotient(moments.within, moments.means).isnan()
    assert functional.nc1_cdnv(moments.traces, moments.means).isnan()
    assert functional.nc2_etf(moments.centred_means).isnan()


def dispatched(metric: ClassStatistics, x: Tensor, y: Tensor) -> list[str]:
    with reference.DispatchLog() as log:
        metric.update(x, y)
    return log.names


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("ignore_index", [None, -1])
def test_update_has_no_loop_over_classes_or_samples(ignore_index: int | None, covariance: Any) -> None:
    logs = []
    for k, n in ((2, 8), (100, 8), (2, 300), (100, 300)):
        metric = ClassStatistics(k, covariance=covariance, ignore_index=ignore_index)
        x, y = torch.randn(n, 3, generator=torch.Generator().manual_seed(0)), torch.arange(n) % k
        logs.append([dispatched(metric, x, y), dispatched(metric, x, y)])
    assert 0 < len(logs[0][0]) < 100
    assert logs[1:] == logs[:-1]


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("ignore_index", [None, -1])
@pytest.mark.parametrize("shift", [None, torch.zeros(3)])
def test_update_never_waits_for_the_device(shift: Tensor | None, ignore_index: int | None, covariance: Any) -> None:
    # Meta tensors hold no values: whatever would ask for one raises.
    metric = ClassStatistics(4, covariance=covariance, ignore_index=ignore_index, shift=shift).to("meta")
    x, y = torch.empty(20, 3, device="meta"), torch.empty(20, dtype=torch.long, device="meta")
    for features in (x, x.half(), x.double()):
        metric.update(features, y)
    assert metric.counts.device.type == metric.products.device.type == "meta"
    with pytest.raises(RuntimeError, match="meta"):
        metric.compute()


def test_result_on_one_device_does_not_outlive_a_move_to_another() -> None:
    x, y, k, _ = dataset("unbalanced")
    metric = gathered(x, y, k)
    metric.compute()
    with pytest.raises(RuntimeError, match="meta"):
        metric.to("meta").compute()


def test_invalid_targets_on_a_device_are_named_by_compute() -> None:
    x, y, k, _ = dataset("unbalanced")
    metric = gathered(x, y, k)
    metric.invalid += 2
    with pytest.raises(ValueError, match=r"2 targets lie outside 0…4 \(num_classes=5\)"):
        metric.compute()
