"""ClassStatistics and ClassMoments against whole-set float64 computation, in any order and any split."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis.strategies import sampled_from
from torch import Tensor

from nc_callbacks import functional
from nc_callbacks.statistics import ClassMoments, ClassStatistics
from tests import reference
from tests.statistics.common import (
    COVARIANCES,
    NO_UPDATE,
    NUM_CLASSES,
    ONE_BY_ONE,
    RTOL,
    assert_gathered,
    assert_moments,
    dataset,
    few_samples,
    gathered,
    partitions,
    some_examples,
)


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("dtype", RTOL)
@pytest.mark.parametrize("name", reference.DATASETS)
def test_moments_equal_their_definitions(name: str, dtype: torch.dtype, covariance: Any) -> None:
    x, y, k, expected = dataset(name, dtype)
    moments = gathered(x, y, k, covariance=covariance).compute()
    assert_gathered(moments, covariance)
    assert_moments(moments, expected, RTOL[dtype])
    assert moments.means.dtype == moments.traces.dtype == torch.float64
    if moments.within is not None:
        assert torch.equal(moments.within, moments.within.T)


@pytest.mark.parametrize("name", reference.DATASETS)
def test_pooled_covariance_is_the_prior_weighted_sum(name: str) -> None:
    x, y, k, _ = dataset(name)
    pooled = gathered(x, y, k).compute()
    per_class = gathered(x, y, k, covariance="per_class").compute()
    assert per_class.covariances is not None
    weighted = sum(p * c for p, c in zip(pooled.priors, per_class.covariances, strict=True))
    torch.testing.assert_close(per_class.within, weighted, rtol=0, atol=1e-15 * float(pooled.traces.max()))
    torch.testing.assert_close(pooled.within, weighted, rtol=0, atol=1e-6 * float(pooled.traces.max()))


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_derived_moments(covariance: Any) -> None:
    x, y, k, expected = dataset("unbalanced", torch.float64)
    moments = gathered(x, y, k + 1, covariance=covariance).compute()
    means = expected.means
    np.testing.assert_allclose(moments.priors[:k], expected.counts / len(x))
    np.testing.assert_allclose(moments.global_mean, means.mean(0))
    np.testing.assert_allclose(moments.sample_mean, x.mean(0))
    np.testing.assert_allclose(moments.centred_means[:k], reference.centred(means), atol=1e-14)
    np.testing.assert_allclose(moments.between, reference.between(means), atol=1e-14)
    if covariance == "none":
        with pytest.raises(ValueError, match=r'second_moment needs .* covariance="none"'):
            _ = moments.second_moment
    else:
        np.testing.assert_allclose(moments.second_moment, x.T @ x / len(x), atol=1e-14)


def test_absent_class_is_nan_and_observed_drops_it() -> None:
    x, y, k, expected = dataset("unbalanced")
    labels = torch.tensor([0, 2, 3, 5, 6])
    moments = gathered(x, labels[y], k + 3, covariance="per_class").compute()
    assert moments.present.tolist() == [True, False, True, True, False, True, True, False]
    for values in (moments.means, moments.traces, moments.coordinate_sums, moments.covariances):
        assert values is not None
        assert values[~moments.present].isnan().all()
    observed = moments.observed()
    assert observed.present.all()
    assert_moments(observed, expected)


def test_class_with_one_sample_has_no_spread() -> None:
    x, y, k, expected = dataset("unbalanced")
    moments = gathered(x, y, k, covariance="per_class").compute()
    assert expected.counts[-1] == 1
    assert moments.covariances is not None
    assert moments.traces[-1] == moments.coordinate_sums[-1] == moments.covariances[-1].abs().max() == 0
    assert torch.equal(moments.means[-1].float(), x[y == k - 1][0])


@pytest.fixture(scope="module")
def wide_layer() -> Callable[[float], tuple[Tensor, Tensor]]:
    """Features in R^512 of 10 unbalanced classes with means of norm 20, for a given spread within classes."""
    rng = np.random.default_rng(0)
    targets = rng.permutation(np.repeat(np.arange(10), np.linspace(20, 580, 10).astype(int)))
    means = rng.normal(size=(10, 512))
    means *= 20 / np.linalg.norm(means, axis=1, keepdims=True)
    noise = rng.normal(size=(len(targets), 512))
    return lambda spread: (torch.tensor(means[targets] + spread * noise).float(), torch.tensor(targets))


@pytest.mark.parametrize("exponent", [-1, -3, -5, -7, -9, -11, -13])
def test_nc1_is_exact_down_to_full_collapse(wide_layer: Callable[..., Any], exponent: int) -> None:
    # Σ_W ≈ σ² I and Σ_B has 9 eigenvalues near 20²/10, so nc1 ≈ σ² · 9/40/10.
    x, y = wide_layer((10**exponent * 400 / 9) ** 0.5)
    expected = reference.moments(x.numpy(), y.numpy(), 10)
    value = reference.nc1(expected.within, expected.means)
    assert 0.5 < value / 10**exponent < 2
    moments = gathered(x, y, 10, batch_size=128).compute()
    assert moments.within is not None
    assert functional.nc1(moments.within, moments.means).item() == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("covariance", ["pooled", "per_class"])
def test_common_offset_costs_no_digits(covariance: Any) -> None:
    features, targets = reference.gaussian_classes([400, 300, 200, 100], 64, offset=1000)
    x, y = torch.tensor(features).float(), torch.tensor(targets)
    expected = reference.moments(x.numpy(), targets, 4).within
    within = gathered(x, y, 4, batch_size=128, covariance=covariance).compute().within
    assert within is not None
    assert np.linalg.norm(within.numpy() - expected) / np.linalg.norm(expected) < 1e-5


@pytest.mark.parametrize("covariance", COVARIANCES)
@some_examples
@given(parts=partitions(), dtype=sampled_from(list(RTOL)))
@example(parts=ONE_BY_ONE, dtype=torch.float32)
@example(parts=ONE_BY_ONE, dtype=torch.float64)
def test_order_and_batches_do_not_matter(dtype: torch.dtype, covariance: Any, parts: list[list[int]]) -> None:
    x, y, expected = few_samples(dtype)
    metric = ClassStatistics(NUM_CLASSES, covariance=covariance)
    for part in parts:
        metric.update(x[part], y[part])
    moments = metric.compute()
    assert_gathered(moments, covariance)
    assert_moments(moments, expected, RTOL[dtype])


@pytest.mark.parametrize("covariance", COVARIANCES)
@NO_UPDATE
@some_examples
@given(parts=partitions(), dtype=sampled_from(list(RTOL)))
@example(parts=ONE_BY_ONE, dtype=torch.float32)
@example(parts=ONE_BY_ONE, dtype=torch.float64)
def test_merged_states_equal_the_whole(dtype: torch.dtype, covariance: Any, parts: list[list[int]]) -> None:
    x, y, expected = few_samples(dtype)
    merged = ClassStatistics(NUM_CLASSES, covariance=covariance)
    for i, part in enumerate(parts):
        other = gathered(x[part], y[part], NUM_CLASSES, covariance=covariance)
        merged.merge_state(other if i % 2 else other.metric_state)
    moments = merged.compute()
    assert_gathered(moments, covariance)
    assert_moments(moments, expected, RTOL[dtype])


@pytest.mark.parametrize("covariance", COVARIANCES)
@some_examples
@given(parts=partitions(), dtype=sampled_from(list(RTOL)))
@example(parts=ONE_BY_ONE, dtype=torch.float32)
@example(parts=ONE_BY_ONE, dtype=torch.float64)
def test_merged_moments_equal_the_whole(dtype: torch.dtype, covariance: Any, parts: list[list[int]]) -> None:
    x, y, expected = few_samples(dtype)
    moments = reduce(
        ClassMoments.merge,
        [gathered(x[part], y[part], NUM_CLASSES, covariance=covariance).compute() for part in parts],
    )
    assert_gathered(moments, covariance)
    assert_moments(moments, expected, RTOL[dtype])


def test_merge_keeps_what_both_sides_have() -> None:
    x, y, k, expected = dataset("unbalanced")
    halves = [
        gathered(x[::2], y[::2], k, covariance="per_class").compute(),
        gathered(x[1::2], y[1::2], k, covariance="pooled").compute(),
    ]
    merged = ClassMoments.merge(*halves)
    assert_gathered(merged, "pooled")
    assert_moments(merged, expected)
    assert ClassMoments.merge(halves[0], dataclasses.replace(halves[1], within=None)).within is None


@pytest.mark.parametrize("covariance", COVARIANCES)
@NO_UPDATE
def test_merging_with_an_empty_state_changes_nothing(covariance: Any) -> None:
    x, y, k, expected = dataset("unbalanced")
    full, empty = gathered(x, y, k, covariance=covariance), ClassStatistics(k, covariance=covariance)
    full.merge_state(empty)
    assert_moments(full.compute(), expected)
    empty.merge_state(full)
    assert_moments(empty.compute(), expected)


@pytest.mark.parametrize("covariance", COVARIANCES)
@NO_UPDATE
def test_merging_with_empty_moments_changes_nothing(covariance: Any) -> None:
    x, y, k, expected = dataset("unbalanced")
    full = gathered(x, y, k, covariance=covariance).compute()
    empty = ClassStatistics(k, x.shape[1], covariance=covariance).compute()
    assert_moments(full.merge(empty), expected)
    assert_moments(empty.merge(full), expected)
