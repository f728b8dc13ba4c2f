"""Which states merge, and what is said of others; labels of any type."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nc_callbacks.statistics import ClassStatistics, OutputErrors, SoftmaxStatistics
from tests import reference
from tests.statistics.common import COVARIANCES, NO_UPDATE, assert_moments, dataset, gathered


def small(covariance: Any = "pooled", k: int = 3, p: int = 4) -> ClassStatistics:
    return gathered(torch.ones(k, p), torch.arange(k), k, covariance=covariance)


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float64), (torch.float64, torch.float32)])
def test_states_of_two_precisions_merge_both_ways(dtypes: tuple[torch.dtype, torch.dtype], covariance: Any) -> None:
    x, y, k, expected = dataset("unbalanced")
    parts = [(x[:50].to(dtypes[0]), y[:50]), (x[50:].to(dtypes[1]), y[50:])]
    mine, theirs = (gathered(*part, k, covariance=covariance) for part in parts)
    mine.merge_state(theirs)
    assert mine.sums.dtype == mine.shift.dtype == torch.float64
    assert_moments(mine.compute(), expected)


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("long", [(True, False), (False, True), (True, True)])
def test_sums_in_two_parts_merge(long: tuple[bool, bool], covariance: Any) -> None:
    x, y, k, expected = dataset("unbalanced")
    mine, theirs = (gathered(x[i::2], y[i::2], k, covariance=covariance) for i in range(2))
    for metric, two in zip((mine, theirs), long, strict=True):
        if two:
            # Far away and back: both parts hold something.
            classes = torch.arange(k)
            metric._move_shift(classes, metric.shift + 1000)
            metric._move_shift(classes, metric.shift - 1000)
            assert metric.earlier_sums.any()
    mine.merge_state(theirs)
    assert_moments(mine.compute(), expected)


@NO_UPDATE
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_given_shift_stays(covariance: Any) -> None:
    x, y, k, expected = dataset("unbalanced")
    shift = x.mean(0)
    mine = ClassStatistics(k, covariance=covariance, shift=shift)
    mine.merge_state(gathered(x, y, k, covariance=covariance))
    assert torch.equal(mine.shift, shift.expand(k, -1))
    assert_moments(mine.compute(), expected)


def test_counts_of_refused_and_broken_samples_are_added() -> None:
    mine, theirs = small(), small()
    for metric, count in ((mine, 1), (theirs, 3)):
        metric.invalid += count
        metric.nonfinite += 2 * count
    mine.merge_state(theirs)
    assert [int(mine.invalid), int(mine.nonfinite)] == [4, 8]


def changed(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in (small().metric_state | values).items() if value is not None}


@pytest.mark.parametrize(
    ("other", "match"),
    [
        (ClassStatistics(4), r"Cannot merge statistics whose (sums|products) have shapes"),
        (OutputErrors(3), "Expected a ClassStatistics or its metric_state, got OutputErrors"),
        (3, "Expected a ClassStatistics or its metric_state, got int"),
        (SoftmaxStatistics(3).metric_state, r"got a state that lacks \['coordinate_squares'"),
        (changed(squares=None), r"lacks \['squares'\]"),
        (changed(moments=torch.zeros(3)), r"has also \['moments'\]"),
        (changed(counts=torch.ones(3)), r"whose counts are torch.float32; expected torch.int64"),
        (changed(shift=[1.0]), "whose shift are list; expected torch.float32"),
        (changed(counts=torch.ones(2, dtype=torch.long)), r"whose counts have shapes \(3,\) and \(2,\)"),
        (changed(earlier_sums=torch.zeros(2)), r"whose earlier_sums have shapes \(3, 4\) and \(2,\)"),
        (changed(nonfinite=torch.zeros(1, dtype=torch.long)), r"whose nonfinite have shapes \(\) and \(1,\)"),
        (changed(products=torch.zeros(4, 4, device="meta")), "a state on meta into one on cpu: move it first"),
    ],
)
def test_what_is_no_fitting_state_is_refused(other: Any, match: str) -> None:
    metric = small()
    with pytest.raises(ValueError, match=match):
        metric.merge_state(other)
    assert metric.counts.tolist() == [1, 1, 1]


LABELS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.float32, torch.float64, torch.bfloat16]


@pytest.mark.parametrize("dtype", LABELS)
def test_labels_of_any_type_count(dtype: torch.dtype) -> None:
    x, y, k, expected = dataset("unbalanced")
    assert_moments(gathered(x, y.to(dtype), k).compute(), expected)


@pytest.mark.parametrize(("dtype", "ignored"), [(torch.uint8, 255), (torch.float32, -100), (torch.int16, -1)])
def test_labels_of_any_type_are_ignored(dtype: torch.dtype, ignored: int) -> None:
    x, y, k, _ = dataset("unbalanced")
    left = torch.arange(len(y)) % 4 > 0
    moments = gathered(x, y.where(left, ignored).to(dtype), k, ignore_index=ignored).compute()
    assert_moments(moments, reference.moments(x[left].numpy(), y[left].numpy(), k))


def test_truth_values_are_two_classes() -> None:
    moments = gathered(torch.tensor([[0.0], [2.0], [5.0]]), torch.tensor([False, False, True]), 2).compute()
    assert moments.means.tolist() == [[1], [5]]
    assert moments.traces.tolist() == [1, 0]
