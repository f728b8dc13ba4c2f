"""Statistics made and used inside inference mode, and what a batch without samples or a refused merge leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nc_callbacks.statistics import ClassStatistics
from tests.statistics.common import assert_moments, dataset, gathered

INFERENCE_STEPS: dict[str, Callable[[ClassStatistics, Tensor, Tensor], Any]] = {
    "update": lambda metric, x, y: metric.update(x, y),
    "reset_and_update": lambda metric, x, y: (metric.reset(), metric.update(x, y)),
    "forward": lambda metric, x, y: metric(x, y),
    "merge_state": lambda metric, x, y: metric.merge_state(gathered(x, y, metric.num_classes)),
    "compute": lambda metric, x, y: (metric.update(x, y), metric.compute()),
}


@pytest.mark.parametrize("step", INFERENCE_STEPS)
def test_used_inside_inference_mode_and_then_outside(step: str) -> None:
    x, y, k, expected = dataset("unbalanced")
    metric = ClassStatistics(k)
    with torch.inference_mode():
        INFERENCE_STEPS[step](metric, x[:50] + 0, y[:50])
    metric.update(x[50:], y[50:])
    assert_moments(metric.compute(), expected)


def test_made_inside_inference_mode() -> None:
    x, y, k, expected = dataset("unbalanced")
    with torch.inference_mode():
        metric = ClassStatistics(k)
        metric.update(x[:50], y[:50])
    metric.update(x[50:], y[50:])
    assert_moments(metric.compute(), expected)


@pytest.mark.parametrize("ignore_index", [None, -1])
def test_made_inside_inference_mode_on_a_device(ignore_index: int | None) -> None:
    """As in `trainer.validate` on a GPU; meta takes the same way, without numbers. Two batches are too many to wait."""
    for inference in (True, False):
        with torch.inference_mode():
            metric = ClassStatistics(3, 4, ignore_index=ignore_index).to("meta")
        with torch.inference_mode(inference):
            for _ in range(3):
                metric.update(torch.zeros(3000, 4, device="meta"), torch.zeros(3000, dtype=torch.long, device="meta"))


def test_a_refused_merge_leaves_statistics_of_use() -> None:
    x, y, k, expected = dataset("unbalanced")
    other = gathered(x.double(), y, k, covariance="none")
    with torch.inference_mode():
        metric = ClassStatistics(k)
        with pytest.raises(ValueError, match="Cannot merge statistics"):
            metric.merge_state(other)
    metric.update(x, y)
    assert_moments(metric.compute(), expected)


@pytest.mark.parametrize("p", [5, 300_000])
def test_batches_without_a_sample_that_counts(p: int) -> None:
    metric = ClassStatistics(2, covariance="none", ignore_index=-100)
    metric.update(torch.ones(3, p), torch.full((3,), -100))
    metric.update(torch.ones(0, p), torch.zeros(0, dtype=torch.long))
    metric.update(torch.full((2, p), 4.0), torch.tensor([1, -100]))
    assert metric.compute().counts.tolist() == [0, 1]


def test_moved_after_forward() -> None:
    x, y, k, expected = dataset("unbalanced")
    metric = ClassStatistics(k)
    metric(x, y)
    assert_moments(metric.double().to("cpu").compute(), expected)
