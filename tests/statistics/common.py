"""Data, partitions and comparisons of the tests of statistics."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from nc_callbacks.statistics import ClassMoments, ClassStatistics
from tests import reference

COVARIANCES = ["none", "pooled", "per_class"]
RTOL = {torch.float32: 1e-6, torch.float64: 1e-14}
"""Some ten roundings: sums over at most a few hundred samples."""

# Merging counts as no update to torchmetrics.
NO_UPDATE = pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")

some_examples = settings(derandomize=True, deadline=None, max_examples=20)


def dataset(name: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, int, reference.Moments]:
    """A data set rounded to `dtype`, and the moments of the rounded values."""
    features, targets, k = reference.dataset(name)
    x = torch.tensor(features, dtype=dtype)
    return x, torch.tensor(targets), k, reference.moments(x.double().numpy(), targets, k)


def gathered(x: Tensor, y: Tensor, num_classes: int, batch_size: int = 7, **kwargs: Any) -> ClassStatistics:
    metric = ClassStatistics(num_classes, **kwargs)
    for features, targets in zip(x.split(batch_size), y.split(batch_size), strict=True):
        metric.update(features, targets)
    return metric


def assert_moments(moments: ClassMoments, expected: reference.Moments, rtol: float = 1e-6) -> None:
    """Errors are measured against the spread within classes, so that a common offset excuses nothing."""
    variance, p = np.nanmax(expected.traces), expected.means.shape[1]
    np.testing.assert_array_equal(moments.counts, expected.counts)
    # The means themselves are float64.
    np.testing.assert_allclose(moments.means, expected.means, rtol=1e-15, atol=rtol * np.sqrt(variance))
    np.testing.assert_allclose(moments.traces, expected.traces, atol=rtol * variance)
    np.testing.assert_allclose(moments.coordinate_sums, expected.coordinate_sums, atol=rtol * p * variance)
    if moments.within is not None:
        np.testing.assert_allclose(moments.within, expected.within, atol=rtol * variance)
    if moments.covariances is not None:
        np.testing.assert_allclose(moments.covariances, expected.covariances, atol=rtol * variance)


def assert_gathered(moments: ClassMoments, covariance: str) -> None:
    assert (moments.within is None) == (covariance == "none")
    assert (moments.covariances is None) == (covariance != "per_class")


NUM_SAMPLES = 24
NUM_CLASSES = 5
"""The last one has no sample."""


def few_samples(dtype: torch.dtype) -> tuple[Tensor, Tensor, reference.Moments]:
    features, targets = reference.gaussian_classes([12, 7, 4, 1], 3, offset=100)
    x = torch.tensor(features, dtype=dtype)
    return x, torch.tensor(targets), reference.moments(x.double().numpy(), targets, NUM_CLASSES)


@st.composite
def partitions(draw: st.DrawFn) -> list[list[int]]:
    """The samples in any order, cut anywhere."""
    order = draw(st.permutations(range(NUM_SAMPLES)))
    cuts = draw(st.sets(st.integers(1, NUM_SAMPLES - 1)))
    return [order[start:stop] for start, stop in pairwise([0, *sorted(cuts), NUM_SAMPLES])]


ONE_BY_ONE = [[i] for i in range(NUM_SAMPLES)]


def some_outputs(k: int, softmax: bool, n: int = 40) -> tuple[Tensor, Tensor]:
    """Outputs near one-hot labels (or their logits) of unbalanced classes."""
    generator = torch.Generator().manual_seed(k)
    targets = (torch.rand(n, generator=generator) ** 2 * k).long()
    noise = torch.randn(n, k, generator=generator)
    one_hot = torch.nn.functional.one_hot(targets, k)
    return (3 * one_hot + noise if softmax else one_hot + 0.1 + 0.05 * noise), targets
