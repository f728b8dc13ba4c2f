"""The separation fuzziness D against NumPy from its definition."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from nc_callbacks.functional import class_separation, nc1
from nc_callbacks.functional.variability import nc1_and_separation
from nc_callbacks.statistics import ClassStatistics

COUNTS = {"balanced": [30] * 4, "unbalanced": [80, 25, 7, 3], "more features than samples": [3, 2, 2, 4]}


def drawn(counts: list[int], p: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    targets = np.repeat(np.arange(len(counts)), counts)
    return rng.normal(size=(len(counts), p))[targets] + 0.5 * rng.normal(size=(len(targets), p)) + 3, targets


def defined(x: np.ndarray, y: np.ndarray) -> float:
    k, n = y.max() + 1, len(y)
    between, within = np.zeros((2, x.shape[1], x.shape[1]))
    for c in range(k):
        rows = x[y == c]
        gap = rows.mean(0) - x.mean(0)
        between += len(rows) / n * np.outer(gap, gap)
        within += (rows - rows.mean(0)).T @ (rows - rows.mean(0)) / n
    return float(np.trace(within @ np.linalg.pinv(between, rcond=1e-10)))


@pytest.mark.parametrize("p", [2, 3, 20])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize(("dtype", "rel"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
def test_equals_its_definition(counts: list[int], p: int, dtype: torch.dtype, rel: float) -> None:
    x, y = drawn(counts, p)
    statistics = ClassStatistics(len(counts))
    statistics.update(torch.tensor(x, dtype=dtype), torch.tensor(y))
    m = statistics.compute()
    assert m.within is not None
    found = class_separation(m.within, m.means, m.counts, m.precision)
    assert found.item() == pytest.approx(defined(x, y), rel=rel)
    if len(set(counts)) == 1:
        assert found.item() == pytest.approx(
            len(counts) * nc1(m.within, m.means, precision=m.precision).item(), rel=rel
        )


def test_collapsed_coinciding_and_not_finite() -> None:
    means, counts = torch.eye(3), torch.tensor([5, 2, 1])
    assert class_separation(torch.zeros(3, 3), means, counts) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert class_separation(torch.eye(3), torch.ones(3, 3), counts).isinf()
    assert class_separation(torch.full((3, 3), torch.nan), means, counts).isnan()


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("by_samples", [False, True])
def test_together_with_nc1_it_is_the_same(counts: list[int], by_samples: bool) -> None:
    x, y = drawn(counts, 3)
    statistics = ClassStatistics(len(counts))
    statistics.update(torch.tensor(x), torch.tensor(y))
    m = statistics.compute()
    assert m.within is not None
    centre = m.sample_mean if by_samples else None
    together = nc1_and_separation(m.within, m.means, m.counts, centre, m.precision)
    alone = nc1(m.within, m.means, centre, m.precision), class_separation(m.within, m.means, m.counts, m.precision)
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=0)


def test_few_digits_are_said_once() -> None:
    means = 1e4 + 1e-3 * torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        nc1_and_separation(1e-6 * torch.eye(6), means, torch.tensor([5, 5, 5, 5]), None, 2**-23)
    assert len(caught) == 1


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"counts must be \(3,\) to go with means of shape \(3, 3\), got \(2,\)"):
        class_separation(torch.eye(3), torch.eye(3), torch.ones(2))
