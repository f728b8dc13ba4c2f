"""Samples far from all others, and shifts that lie far from their class."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nc_callbacks.statistics import ClassMoments, pending, shifts, states
from tests import reference
from tests.statistics.common import assert_moments, gathered


def assert_exact(moments: ClassMoments, x: Tensor, y: Tensor, k: int, rtol: float = 1e-5) -> None:
    """Σ_W also in the directions where the outlier has no part: its smallest eigenvalue and nc1."""
    expected = reference.moments(x.double().numpy(), y.numpy(), k)
    assert moments.within is not None
    within = moments.within.double().numpy()
    np.testing.assert_allclose(moments.traces, expected.traces, rtol=rtol)
    least, right = (np.linalg.eigvalsh(w)[0] for w in (within, expected.within))
    # An eigenvalue in float64 is known to 10⁻¹⁶ of the largest.
    assert least == pytest.approx(right, rel=rtol, abs=1e-14 * np.trace(within))
    value = reference.nc1(within, moments.means.numpy())
    assert value == pytest.approx(reference.nc1(expected.within, expected.means), rel=rtol)


def with_outlier(k: int, p: int, n: int, size: float, spread: float, where: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(k + where)
    y = (torch.arange(n) % k)[torch.randperm(n, generator=generator)]
    x = 5 * torch.randn(k, p, generator=generator)[y] + spread * torch.randn(n, p, generator=generator)
    x[where] += size * spread * torch.randn(p, generator=generator)
    return x, y


@pytest.mark.parametrize("where", [0, 3, 77, 700])
@pytest.mark.parametrize("size", [100, 1e4, 1e6])
@pytest.mark.parametrize(("k", "p"), [(4, 12), (30, 150)])
def test_an_outlier_costs_the_other_samples_no_digits(k: int, p: int, size: float, where: int) -> None:
    x, y = with_outlier(k, p, 1200, size, 1.0, where)
    assert_exact(gathered(x, y, k, batch_size=100).compute(), x, y, k)


@pytest.mark.parametrize("covariance", ["pooled", "per_class"])
def test_an_outlier_beside_collapsed_classes(covariance: Any) -> None:
    x, y = with_outlier(5, 16, 600, 1e4, 1e-5, 3)
    assert_exact(gathered(x, y, 5, batch_size=40, covariance=covariance).compute(), x, y, 5)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 40])
@pytest.mark.parametrize("where", [0, 1, 10, 30])
def test_an_outlier_among_rows_that_do_not_wait(monkeypatch: pytest.MonkeyPatch, where: int, batch_size: int) -> None:
    """The shift of a class may begin at the outlier itself, and leaves it."""
    monkeypatch.setattr(pending, "_ROWS", 1)
    x, y = with_outlier(20, 8, 800, 1e6, 1.0, where)
    assert_exact(gathered(x, y, 20, batch_size=batch_size).compute(), x, y, 20)


@pytest.mark.parametrize("given", [False, True])
def test_an_outlier_does_not_move_a_shift_far(given: bool) -> None:
    x, y = with_outlier(4, 12, 400, 1e6, 1.0, 3)
    clean = torch.arange(400) != 3
    means = torch.tensor(reference.moments(x[clean].numpy(), y[clean].numpy(), 4).means).float()
    metric = gathered(x, y, 4, batch_size=40, shift=means if given else None)
    assert (torch.linalg.vector_norm(metric.shift - means, dim=1) < 12**0.5).all()
    assert not given or torch.equal(metric.shift, means)
    assert_exact(metric.compute(), x, y, 4)


@pytest.mark.parametrize("value", [1e17, 1e30])
@pytest.mark.parametrize("where", [3, 300])
def test_a_sample_too_large_to_be_squared_is_counted_alone(where: int, value: float) -> None:
    x, y = with_outlier(4, 12, 400, 0, 1.0, where)
    x[where] = value
    moments = gathered(x, y, 4, batch_size=100, covariance="per_class").compute()
    assert moments.nonfinite == (value > 1e19)
    others = torch.arange(4) != y[where]
    expected = reference.moments(x[y != y[where]].numpy(), y[y != y[where]].numpy(), 4)
    np.testing.assert_allclose(moments.traces[others], expected.traces[others], rtol=1e-6)
    if value < 1e19:
        assert_moments(moments, reference.moments(x.double().numpy(), y.numpy(), 4))


def two_sources(distance: float, spread: float, first: int, n: int) -> tuple[Tensor, Tensor]:
    """The first samples of each class come from another source than the rest."""
    generator = torch.Generator().manual_seed(0)
    k, p = 5, 16
    y = torch.arange(n) % k
    means = torch.randn(k, p, generator=generator)
    other = means + distance * torch.randn(k, p, generator=generator)
    x = torch.where(torch.arange(n)[:, None] < first, other[y], means[y])
    return x + spread * torch.randn(n, p, generator=generator), y


@pytest.fixture
def hundred_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most so many wait."""
    monkeypatch.setattr(pending, "_ROWS", 100)


@pytest.mark.parametrize(("distance", "spread"), [(0.3, 1e-3), (100, 1e-2), (1e4, 1.0)])
@pytest.mark.parametrize("first", [5, 100, 300])
def test_first_samples_unlike_the_rest(
    monkeypatch: pytest.MonkeyPatch, first: int, distance: float, spread: float
) -> None:
    monkeypatch.setattr(pending, "_ROWS", 100)
    x, y = two_sources(distance, spread, first, 6000)
    metric = gathered(x, y, 5, batch_size=100, covariance="per_class")
    moments, expected = metric.compute(), reference.moments(x.double().numpy(), y.numpy(), 5)
    assert_exact(moments, x, y, 5, 1e-4 if first == 5 else 1e-5)
    np.testing.assert_allclose(moments.traces, expected.traces, rtol=1e-6)
    # Near the rest rather than the first.
    gaps = torch.linalg.vector_norm(metric.shift - moments.means, dim=1)
    assert (gaps.square() < moments.traces).all()


def test_shifts_follow_means_that_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "_BLOCK_ROWS", 64)
    monkeypatch.setattr(states, "_BLOCK_ROWS_PER_CLASS", 0)
    monkeypatch.setattr(pending, "_ROWS", 32)
    generator = torch.Generator().manual_seed(0)
    n, k, p = 4096, 3, 6
    y = torch.arange(n) % k
    # Sorted: the spread within a batch is large enough beside the drift that no batch is far.
    x = 3 * torch.arange(n)[:, None] / n + torch.randn(n, p, generator=generator)
    metric = gathered(x, y, k, batch_size=32)
    first = reference.moments(x[:32].numpy(), y[:32].numpy(), k).means
    moments = metric.compute()
    assert_exact(moments, x, y, k)
    moved, stayed = metric.shift - moments.means, torch.tensor(first) - moments.means
    assert (moved.square().sum(1) < 0.5 * stayed.square().sum(1)).all()
    fixed = gathered(x, y, k, batch_size=32, shift=torch.tensor(first))
    assert torch.equal(fixed.shift, torch.tensor(first).float())
    assert_exact(fixed.compute(), x, y, k)


@pytest.mark.parametrize("where", ["unbalanced", "several"])
def test_moved_shifts_leave_the_moments(where: str) -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(90, 150, generator=generator), torch.arange(90) % 4
    for covariance in ("none", "pooled", "per_class"):
        metric = gathered(x, y, 4, covariance=covariance)
        classes = torch.tensor([2] if where == "unbalanced" else [0, 3])
        metric._move_shift(classes, metric.shift[classes] + 1000)
        assert (metric.shift[classes] > 500).all()
        assert_moments(metric.compute(), reference.moments(x.numpy(), y.numpy(), 4))


@pytest.mark.parametrize("rows", [3, 7, 60])
def test_centres_are_where_most_rows_are(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    x, y = 1000 + torch.randn(2 * rows, 6, generator=generator), torch.arange(2 * rows) % 2
    x[1] += 1e5
    centres = torch.zeros(3, 6)
    shifts.add_centres(centres, x, y, torch.ones(2 * rows, dtype=torch.bool))
    clean = torch.stack([x[0::2].mean(0), x[3::2].mean(0)])
    assert (torch.linalg.vector_norm(centres[:2] - clean, dim=1) < 12**0.5 + 10 * (rows == 3)).all()
    assert not centres[2].any()
    # One step is the mean of the rows that count.
    means, counted = torch.zeros(2, 6), torch.arange(2 * rows) != 1
    shifts.add_centres(means, x, y, counted, rounds=0)
    torch.testing.assert_close(means, clean, rtol=1e-6, atol=0)
