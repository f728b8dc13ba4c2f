"""Few samples a class: values without bias, and intervals that cover the population's value."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from nc_callbacks.functional import (
    nc1,
    nc1_cdnv,
    nc1_cdnv_corrected,
    nc1_corrected,
    nc1_quotient,
    standard_error,
    wm_cosine,
    wm_cosine_corrected,
)
from nc_callbacks.statistics import ClassMoments, ClassStatistics

DRAWS = 100


class Population:
    """Gaussian classes, with the values that their metrics have without noise."""

    def __init__(self, k: int, p: int, counts: list[int], anisotropic: bool = False, unequal: bool = False) -> None:
        generator = torch.Generator().manual_seed(0)
        self.means = torch.randn(k, p, generator=generator, dtype=torch.float64)
        self.weight = self.means - self.means.mean(0) + 0.5 * torch.randn(k, p, generator=generator).double()
        self.scale = torch.logspace(0.5, -1, p).double() if anisotropic else torch.ones(p).double()
        self.spread = torch.linspace(0.5, 1.5, k).double() if unequal else torch.ones(k).double()
        self.targets = torch.repeat_interleave(torch.arange(k), torch.tensor(counts))
        n = torch.tensor(counts).double()
        self.within = torch.diag(self.scale**2) * (n * self.spread**2).sum() / n.sum()
        self.traces = self.spread**2 * self.scale.square().sum()

    def moments(self, seed: int) -> ClassMoments:
        generator = torch.Generator().manual_seed(seed)
        k, p = self.means.shape
        noise = torch.randn(len(self.targets), p, generator=generator, dtype=torch.float64)
        statistics = ClassStatistics(k)
        x = self.means[self.targets] + noise * self.scale * self.spread[self.targets][:, None]
        statistics.update(x, self.targets)
        return statistics.compute()


POPULATIONS = {
    "8 samples, p > n": Population(4, 64, [8] * 4),
    "20 samples": Population(4, 20, [20] * 4),
    "anisotropic": Population(10, 64, [40] * 10, anisotropic=True),
    "unbalanced, unequal spread": Population(6, 32, [10, 14, 20, 26, 40, 60], unequal=True),
    "p < k": Population(12, 6, [60] * 12),
}


@cache
def drawn(name: str, seed: int) -> ClassMoments:
    return POPULATIONS[name].moments(seed)


METRICS: dict[str, tuple[Callable[[Population], Tensor], Callable[[Population, ClassMoments], Tensor]]] = {
    "nc1": (lambda q: nc1(q.within, q.means), lambda q, m: nc1_corrected(m)),
    "cdnv": (lambda q: nc1_cdnv(q.traces, q.means), lambda q, m: nc1_cdnv_corrected(m)),
    "cosine": (
        lambda q: wm_cosine(q.weight, q.means).mean(),
        lambda q, m: wm_cosine_corrected(q.weight, m).mean(),
    ),
}


QUICK = ("8 samples, p > n", "unbalanced, unequal spread")


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in POPULATIONS]
)
def test_unbiased_and_covered(name: str, metric: str) -> None:
    population, (true, found) = POPULATIONS[name], METRICS[metric]
    expected = float(true(population))
    values, errors = [], []
    for seed in range(DRAWS):
        moments = drawn(name, seed)
        values.append(found(population, moments))
        errors.append(standard_error(lambda m: found(population, m), moments))
    value, error = torch.stack(values), torch.stack(errors)
    assert value.isnan().sum() <= 2
    value, error = value[~value.isnan()], error[~value.isnan()]
    # Three standard errors of the mean over the draws, and what is left of the bias.
    assert abs(float(value.mean()) / expected - 1) < 0.03 + 3 * float(value.std()) / expected / DRAWS**0.5
    covered = ((value - expected).abs() <= 1.96 * error).double().mean()
    assert covered >= 0.85
    assert 0.6 < float(error.mean() / value.std()) < 2.2


def test_cdnv_pair_by_pair() -> None:
    """A squared distance of means has the variance 4 dᵀSd a + 2 tr(S²) a², and dᵀSd is tr(S²) a too large itself."""
    moments = POPULATIONS["unbalanced, unequal spread"].moments(3)
    assert moments.within is not None
    means, counts = moments.means.double().numpy(), moments.counts.numpy()
    k, nu = len(counts), counts.sum() - len(counts)
    traces = moments.traces.double().numpy()
    s = traces * counts / (counts - 1)
    pooled = moments.within.double().numpy() * counts.sum() / nu
    squares = (pooled**2).sum() - np.trace(pooled) ** 2 / nu
    values = []
    for c in range(k):
        for other in range(c):
            d = means[c] - means[other]
            gap = d @ d - s[c] / counts[c] - s[other] / counts[other]
            a = (traces[c] / counts[c] + traces[other] / counts[other]) / np.trace(moments.within.numpy())
            variance = 4 * (d @ pooled @ d - squares * a) * a + 2 * squares * a**2
            values.append((s[c] + s[other]) / (2 * gap) * (1 - variance / gap**2))
    assert float(nc1_cdnv_corrected(moments)) == pytest.approx(np.mean(values), rel=1e-9)


def test_what_is_logged_without_is_biased() -> None:
    population = POPULATIONS["8 samples, p > n"]
    moments = [population.moments(seed) for seed in range(20)]
    assert torch.stack([nc1(m.within, m.means) for m in moments]).mean() < 0.85 * nc1(
        population.within, population.means
    )


def test_many_samples_need_no_correction() -> None:
    moments = Population(4, 10, [4000] * 4).moments(0)
    assert float(nc1_corrected(moments)) == pytest.approx(float(nc1(moments.within, moments.means)), rel=5e-3)
    cdnv = float(nc1_cdnv(moments.traces, moments.means))
    assert float(nc1_cdnv_corrected(moments)) == pytest.approx(cdnv, rel=5e-3)


def test_collapsed_features_have_no_doubt() -> None:
    statistics = ClassStatistics(3)
    targets = torch.arange(30) % 3
    statistics.update(torch.eye(5)[:3][targets] * 4, targets)
    moments = statistics.compute()
    for metric in (nc1_corrected, nc1_cdnv_corrected):
        assert float(metric(moments).nan_to_num()) == 0
    assert float(standard_error(lambda m: nc1_quotient(m.within, m.means), moments)) == 0


@pytest.mark.parametrize("metric", [nc1_corrected, nc1_cdnv_corrected])
def test_what_is_not_known_is_nan(metric: Callable[[ClassMoments], Tensor]) -> None:
    # Class means that differ by noise alone, and one sample a class.
    pure = ClassStatistics(4)
    pure.update(torch.randn(12, 30, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 4)
    assert metric(pure.compute()).isnan()
    single = ClassStatistics(3)
    single.update(torch.randn(3, 4), torch.arange(3))
    assert metric(single.compute()).isnan()


def test_of_a_difference_of_means_it_is_the_textbooks() -> None:
    x = torch.tensor([[1.0], [2.0], [6.0], [10.0], [11.0], [15.0], [16.0]])
    targets = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    statistics = ClassStatistics(2, covariance="per_class")
    statistics.update(x, targets)
    error = standard_error(lambda m: m.means[1, 0] - m.means[0, 0], statistics.compute())
    expected = (x[:3].var() / 3 + x[3:].var() / 4).sqrt()
    assert float(error) == pytest.approx(float(expected))


def test_moments_without_a_covariance_are_refused() -> None:
    statistics = ClassStatistics(3, covariance="none")
    statistics.update(torch.randn(6, 2), torch.arange(6) % 3)
    with pytest.raises(ValueError, match=r"pooled covariance \(covariance=\"pooled\"\), got 3 classes without it"):
        nc1_corrected(statistics.compute())


def test_three_samples_a_class_show_their_uncertainty() -> None:
    """What is logged without correction is always «better» than the population; the interval covers its value."""
    population = Population(10, 32, [3] * 10)
    population.scale, population.within = population.scale / 2, population.within / 4
    expected = nc1(population.within, population.means)
    moments = [population.moments(seed) for seed in range(DRAWS)]
    assert all(nc1(m.within, m.means) < expected for m in moments)
    found = [(nc1_corrected(m), standard_error(nc1_corrected, m)) for m in moments]
    known = [(value, error) for value, error in found if not value.isnan()]
    assert len(known) >= 0.9 * DRAWS
    covered = [bool((value - expected).abs() <= 1.96 * error) for value, error in known]
    assert sum(covered) >= 0.85 * len(covered)
