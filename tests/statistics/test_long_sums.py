"""Sums over many samples: two parts that lose nothing, and blocks that end."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nc_callbacks.statistics import ClassMoments, ClassStatistics, states, two_parts
from tests import reference
from tests.statistics.common import COVARIANCES, assert_moments, dataset, gathered, some_examples

numbers = st.floats(-(2.0**100), 2.0**100, width=32)


def exact(*parts: torch.Tensor) -> list[Fraction]:
    return [sum(map(Fraction, column), Fraction(0)) for column in zip(*(part.tolist() for part in parts), strict=True)]


@some_examples
@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=8))
def test_a_block_that_ends_changes_the_sum_by_nothing(pairs: list[tuple[float, float]]) -> None:
    earlier, block = (torch.tensor(column) for column in zip(*pairs, strict=True))
    before = exact(earlier, block)
    two_parts.end_block(block, earlier)
    assert exact(earlier, block) == before
    # All but the rounding has moved.
    assert (block.abs().double() <= 2.0**-24 * earlier.abs().double() + 1e-45).all()


@some_examples
@given(st.lists(st.floats(-1e30, 1e30, allow_subnormal=False), min_size=1, max_size=8))
def test_two_parts_hold_48_bits(values: list[float]) -> None:
    wide = torch.tensor([value if abs(value) > 1e-20 else 0.0 for value in values], dtype=torch.float64)
    block, earlier = torch.ones(len(values)), torch.ones(len(values))
    two_parts.store(block, earlier, slice(None), wide)
    found = two_parts.total(block, earlier, slice(None), torch.float64)
    torch.testing.assert_close(found, wide, rtol=2.0**-48, atol=0)


def test_a_sum_of_one_part_is_replaced() -> None:
    block, none = torch.ones(3, dtype=torch.float64), torch.zeros(0)
    two_parts.store(block, none, slice(1, 3), torch.tensor([0.1, 0.2], dtype=torch.float64))
    assert block.tolist() == [1, 0.1, 0.2]
    total = two_parts.total(block, none, slice(None), torch.float64)
    total += 1
    assert block.tolist() == [1, 0.1, 0.2]


@pytest.fixture(params=[1, 16, 50])
def short_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Rows of a block."""
    monkeypatch.setattr(states, "_BLOCK_ROWS", request.param)
    monkeypatch.setattr(states, "_BLOCK_ROWS_PER_CLASS", 0)
    return request.param


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("name", ["unbalanced", "offset"])
def test_blocks_that_end(name: str, covariance: Any, dtype: torch.dtype) -> None:
    x, y, k, expected = dataset(name, dtype)
    metric = ClassStatistics(k, covariance=covariance)
    for features, targets in zip(x.split(9), y.split(9), strict=True):
        metric.update(features, targets)
        metric.settle()
    assert (metric.earlier_sums.numel() > 0) == (dtype != torch.float64)
    assert_moments(metric.compute(), expected)
    merged = gathered(x, y, k, covariance=covariance)
    merged.merge_state(metric)
    assert_moments(
        merged.compute(), reference.moments(torch.cat([x, x]).double().numpy(), torch.cat([y, y]).numpy(), k)
    )


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_blocks_go_on_where_the_metric_is_called(covariance: Any) -> None:
    x, y, k, expected = dataset("unbalanced")
    metric = ClassStatistics(k, covariance=covariance)
    for features, targets in zip(x.split(9), y.split(9), strict=True):
        metric(features, targets)
    assert metric._rows.count >= len(x)
    assert metric.earlier_sums.numel()
    assert_moments(metric.compute(), expected)


def test_rows_of_blocks_and_looks() -> None:
    rows = states.Rows({"sums": 10, "products": 25}, first_look=25)
    assert [rows.ended_blocks(n) for n in (9, 1, 10, 5)] == [[], ["sums"], ["sums"], ["products"]]
    assert rows.count == 25
    assert [rows.look_is_due(), rows.look_is_due()] == [True, False]
    rows.ended_blocks(24)
    assert not rows.look_is_due()
    rows.ended_blocks(1)
    assert rows.look_is_due()


def relative_error(moments: ClassMoments, expected: reference.Moments) -> float:
    """Of all moments, against the spread of each coordinate."""
    spread = np.sqrt(np.diag(expected.within))
    errors = [(moments.means.numpy() - expected.means) / spread, moments.traces.numpy() / expected.traces - 1]
    for found, right in ((moments.within, expected.within), (moments.covariances, expected.covariances)):
        if found is not None:
            errors.append((found.numpy() - right) / np.outer(spread, spread))
    return max(float(np.abs(error).max()) for error in errors)


def many_times(x: torch.Tensor, y: torch.Tensor, k: int, times: int, covariance: Any) -> ClassMoments:
    metric = ClassStatistics(k, covariance=covariance)
    for _ in range(times):
        metric.update(x, y)
    return metric.compute()


@pytest.mark.slow
@pytest.mark.parametrize("covariance", ["pooled", "per_class"])
@pytest.mark.parametrize("p", [2, 20])
def test_ten_million_samples(p: int, covariance: Any) -> None:
    generator = torch.Generator().manual_seed(p)
    y = torch.randint(0, 2, (2**17,), generator=generator)
    x = torch.randn(2**17, p, generator=generator) + 3 * y[:, None]
    moments = many_times(x, y, 2, 80, covariance)
    assert relative_error(moments, reference.moments(x.numpy(), y.numpy(), 2)) < 1e-6


@pytest.mark.parametrize("covariance", ["pooled", "per_class"])
def test_a_million_samples_of_two_features(covariance: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 2, (2**15,), generator=generator)
    x = torch.randn(2**15, 2, generator=generator) + 3 * y[:, None]
    moments = many_times(x, y, 2, 32, covariance)
    assert relative_error(moments, reference.moments(x.numpy(), y.numpy(), 2)) < 5e-7


@pytest.mark.parametrize("p", [3, 20])
def test_the_same_numbers_over_and_over(p: int) -> None:
    """Roundings of equal numbers do not average out: the bound of `ClassMoments` is for them."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 2, (2**14,), generator=generator)
    x = torch.where(torch.rand(2**14, p, generator=generator) < 0.3, 0.1, 0.7)
    moments = many_times(x, y, 2, 32, "pooled")
    assert relative_error(moments, reference.moments(x.numpy(), y.numpy(), 2)) < 32 * 2**-23
