"""Input that ClassStatistics refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nc_callbacks.statistics import ClassStatistics, OutputErrors
from tests.statistics.common import (
    gathered,
)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"num_classes": 1}, "num_classes must be at least 2"),
        ({"covariance": "full"}, "covariance must be .* got 'full'"),
        ({"shift": torch.zeros(2, 4)}, r"shift must have shape .* got \(2, 4\)"),
        ({"shift": torch.zeros(1, 3, 4)}, r"shift must have shape .* got \(1, 3, 4\)"),
        ({"shift": torch.zeros(4), "num_features": 5}, r"shift must have shape .* \(3, 5\), got \(4,\)"),
        ({"shift": torch.tensor(0.0)}, "shift must have shape"),
    ],
)
def test_wrong_arguments_raise(kwargs: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        ClassStatistics(**{"num_classes": 3, **kwargs})


@pytest.mark.parametrize(
    ("features", "targets", "match"),
    [
        (torch.zeros(2, 4), torch.tensor([0, 3]), r"targets must lie in 0…2 \(num_classes=3\), got \[3\]"),
        (torch.zeros(2, 4), torch.tensor([-1, 0]), r"targets must lie in 0…2 \(num_classes=3\), got \[-1\]"),
        (torch.zeros(2, 4), torch.tensor([0.5, 1.0]), r"targets must be integer .* got torch.float32 with \[0.5\]"),
        (torch.zeros(2, 4), torch.tensor([0.0, torch.nan]), "targets must be integer .* with .nan"),
        (torch.zeros(2, 4), torch.tensor([0.0, torch.inf]), "targets must be integer .* with .inf"),
        (torch.zeros(2, 4), torch.tensor([0.0, 3.0]), r"targets must lie in 0…2 \(num_classes=3\), got \[3\]"),
        (torch.zeros(2, 4), torch.tensor([0j, 1]), "targets must be integer .* got torch.complex64"),
        (torch.zeros(2, 4, dtype=torch.long), torch.tensor([0, 1]), "features must be floating point"),
        (torch.zeros(3, 4), torch.tensor([0, 1]), r"same length.* got \(3, 4\) and \(2,\)"),
        (torch.zeros(2, 3, 4), torch.zeros(3, 2, dtype=torch.long), r"same length.* got \(2, 3, 4\) and \(3, 2\)"),
        (torch.zeros(4), torch.tensor([0, 1, 0, 1]), "same length"),
        (torch.zeros(2, 5), torch.tensor([0, 1]), "features must have 4 entries per sample.* got 5"),
    ],
)
def test_wrong_batches_raise_and_add_nothing(features: Tensor, targets: Tensor, match: str) -> None:
    for metric in (ClassStatistics(3, 4), gathered(torch.ones(3, 4), torch.arange(3), 3)):
        before = metric.counts.clone()
        with pytest.raises(ValueError, match=match):
            metric.update(features, targets)
        assert torch.equal(metric.counts, before)


@pytest.mark.parametrize(
    "other",
    [
        gathered(torch.ones(3, 4), torch.arange(3), 4),
        gathered(torch.ones(3, 5), torch.arange(3), 3),
        gathered(torch.ones(3, 4), torch.arange(3), 3, covariance="none"),
        gathered(torch.ones(3, 4), torch.arange(3), 3, covariance="per_class"),
    ],
)
def test_merge_of_other_shapes_raises(other: ClassStatistics) -> None:
    metric = gathered(torch.ones(3, 4), torch.arange(3), 3)
    with pytest.raises(ValueError, match=r"Cannot merge statistics whose (sums|products) have shapes"):
        metric.merge_state(other)
    mine, theirs = metric.compute(), other.compute()
    if mine.means.shape != theirs.means.shape:
        with pytest.raises(ValueError, match="merge expects moments of the same classes and features"):
            mine.merge(theirs)


@pytest.mark.parametrize("other", [OutputErrors(3), {"counts": torch.zeros(3)}])
def test_merge_of_something_else_raises(other: Any) -> None:
    with pytest.raises(ValueError, match="Expected a ClassStatistics"):
        ClassStatistics(3).merge_state(other)
