"""Scores of samples against float64 computations of their definitions, and against cases known on paper."""

import numpy as np
import pytest
import torch

from nc_callbacks.functional import (
    energy_score,
    mahalanobis_score,
    nci_score,
    nearest_mean_score,
    neco_score,
    whitened_weight,
)
from nc_callbacks.statistics import ClassStatistics
from nc_callbacks.statistics.separation import ScoreSeparation

K, P = 4, 9
COUNTS = (40, 25, 10, 5)


def population(seed=0, dtype=torch.float32, offset=3.0):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.repeat_interleave(torch.arange(K), torch.tensor(COUNTS))
    means = 2 * torch.randn(K, P, generator=generator, dtype=torch.float64) + offset
    scale = torch.linspace(0.2, 1.5, P, dtype=torch.float64)
    x = means[targets] + scale * torch.randn(len(targets), P, generator=generator, dtype=torch.float64)
    new = 3 * torch.randn(30, P, generator=generator, dtype=torch.float64) + offset
    statistics = ClassStatistics(K)
    statistics.update(x.to(dtype), targets)
    return x.to(dtype).double().numpy(), targets.numpy(), new.to(dtype), statistics.compute()


def moments_by_hand(x, y):
    means = np.stack([x[y == c].mean(0) for c in range(K)])
    within = sum(np.cov(x[y == c].T, bias=True) * (y == c).mean() for c in range(K))
    return means, within


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mahalanobis(dtype):
    x, y, new, moments = population(dtype=dtype)
    means, within = moments_by_hand(x, y)
    for shrinkage in (0.0, 0.3):
        sigma = (1 - shrinkage) * within + shrinkage * np.trace(within) / P * np.eye(P)
        gaps = new.double().numpy()[:, None] - means
        expected = -np.einsum("ncp,pq,ncq->nc", gaps, np.linalg.inv(sigma), gaps).min(1)
        np.testing.assert_allclose(mahalanobis_score(new, moments, shrinkage), expected, rtol=1e-4)


def test_mahalanobis_decides_like_the_whitened_head():
    """0 on class means, and nearer 0 on the way to that of the class which Fisher's discriminant chooses."""
    x, y, new, moments = population()
    weight, bias = whitened_weight(moments)
    chosen = (new.double() @ weight.T + bias).argmax(1)
    means = torch.tensor(moments_by_hand(x, y)[0])
    torch.testing.assert_close(mahalanobis_score(means, moments), torch.zeros(K).double(), atol=1e-4, rtol=0)
    near = 0.8 * new.double() + 0.2 * means[chosen]
    assert bool((mahalanobis_score(near, moments) > mahalanobis_score(new.double(), moments)).all())


@pytest.mark.parametrize("directions", [None, 1, 5])
def test_neco(directions):
    x, _, new, moments = population()
    around = new.double().numpy() - x.mean(0)
    _, _, rows = np.linalg.svd(x - x.mean(0), full_matrices=False)
    basis = rows[: directions or K - 1]
    expected = np.linalg.norm(around @ basis.T, axis=1) / np.linalg.norm(around, axis=1)
    np.testing.assert_allclose(neco_score(new, moments, directions), expected, rtol=1e-4)


def test_nearest_mean_and_nci_and_energy():
    x, y, new, moments = population()
    means, _ = moments_by_hand(x, y)
    h = new.double().numpy()
    distances = np.linalg.norm(h[:, None] - means, axis=2)
    np.testing.assert_allclose(nearest_mean_score(new, moments.means), -distances.min(1), rtol=1e-5)
    weight = torch.randn(K, P, generator=torch.Generator().manual_seed(5))
    outputs = new @ weight.T
    predicted = outputs.argmax(1)
    around = h - x.mean(0)
    along = (around * weight.double().numpy()[predicted]).sum(1) / np.linalg.norm(around, axis=1)
    found = nci_score(new, weight, moments.sample_mean, predicted, alpha=0.01)
    np.testing.assert_allclose(found, along + 0.01 * np.abs(h).sum(1), rtol=1e-4, atol=1e-5)
    f = outputs.double().numpy()
    np.testing.assert_allclose(energy_score(outputs, 2.0), 2 * np.log(np.exp(f / 2).sum(1)), rtol=1e-5)
    assert energy_score(torch.tensor([[1000.0, 0.0]])).tolist() == [1000.0]


def test_on_collapsed_features_every_sample_has_the_best_score():
    """Known on paper: class means of a simplex in k − 1 of p directions, W along them, new data orthogonal to them."""
    simplex = torch.eye(K, dtype=torch.float64) - 1 / K
    means = torch.cat([5 * simplex, torch.zeros(K, 5, dtype=torch.float64)], 1)
    targets = torch.arange(400) % K
    noise = 1e-4 * torch.randn(400, P, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    statistics = ClassStatistics(K)
    statistics.update(means[targets] + noise, targets)
    moments = statistics.compute()
    outside = torch.zeros(6, P, dtype=torch.float64)
    outside[:, 4:] = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(neco_score(means, moments), torch.ones(K).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(neco_score(outside, moments), torch.zeros(6).double(), atol=1e-3, rtol=0)
    predicted = torch.arange(K)
    torch.testing.assert_close(
        nci_score(means, means, moments.sample_mean, predicted), means.norm(dim=1), atol=1e-3, rtol=0
    )
    assert bool((nci_score(outside, means, moments.sample_mean, predicted[[0] * 6]).abs() < 1e-3).all())
    assert bool((nearest_mean_score(outside, moments.means) < -4).all())


def test_refused():
    _, _, new, moments = population()
    with pytest.raises(ValueError, match=r"features must be \(n, 9\)"):
        neco_score(new[:, :3], moments)
    with pytest.raises(ValueError, match="share between 0 and 1"):
        mahalanobis_score(new, moments, shrinkage=2)
    with pytest.raises(ValueError, match="directions must be at least 1"):
        neco_score(new, moments, 0)
    few = ClassStatistics(2)
    few.update(torch.randn(6, 20), torch.arange(6) % 2)
    with pytest.raises(ValueError, match="Σ is singular with shrinkage 0"):
        mahalanobis_score(torch.randn(2, 20), few.compute(), shrinkage=0.0)
    same = ClassStatistics(2)
    same.update(torch.tensor([[0.0], [0.0], [1.0], [1.0]]), torch.tensor([0, 0, 1, 1]))
    # A feature that is the sum of two others up to rounding has a variance of its own of rounding alone.
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)) + 1
    statistics = ClassStatistics(2)
    statistics.update(torch.cat([x, x.sum(1, keepdim=True)], 1), torch.arange(200) % 2)
    with pytest.raises(ValueError, match="Σ is singular with shrinkage 0"):
        mahalanobis_score(x[:1, [0, 1, 0]], statistics.compute(), shrinkage=0.0)
    # The same far from 0, where rounding is that of the offset.
    far = ClassStatistics(2)
    far.update(1e4 + 0.1 * torch.cat([x, x[:, :1] + 1e-3 * x[:, 1:]], 1), torch.arange(200) % 2)
    with pytest.raises(ValueError, match="Σ is singular with shrinkage 0"):
        mahalanobis_score(1e4 + x[:1, [0, 1, 0]], far.compute(), shrinkage=0.0)
    with pytest.raises(ValueError, match="Σ_W is 0"):
        mahalanobis_score(torch.zeros(1, 1), same.compute())


def by_pairs(within, outside):
    pairs = within[:, None] - outside
    auroc = ((pairs > 0) + 0.5 * (pairs == 0)).mean()
    # The largest threshold that at least 95 % of those within reach.
    threshold = max(t for t in within if (within >= t).mean() >= 0.95)
    return auroc, (outside >= threshold).mean()


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e4])
@pytest.mark.parametrize("n", [40, 137])
def test_auroc_and_false_positive_rate_by_counting(n, scale):
    """Also of scores far from 0 or close together, which torchmetrics alone would take for logits."""
    generator = np.random.default_rng(n)
    within = scale * np.round(generator.normal(1, 1, n), 1) - 500 * scale
    outside = scale * np.round(generator.normal(0, 1.5, 61), 1) - 500 * scale
    separation = ScoreSeparation()
    for part in np.array_split(within, 3):
        separation.update(torch.tensor(part), torch.tensor([]))
    separation.update(torch.tensor([]), torch.tensor(outside))
    auroc, rate = separation.compute()
    np.testing.assert_allclose([float(auroc), float(rate)], by_pairs(within, outside), rtol=1e-6, atol=1e-7)


def test_without_samples_or_with_nan_it_is_not_known():
    for outside in ([], [1.0, torch.nan]):
        separation = ScoreSeparation()
        separation.update(torch.ones(3), torch.tensor(outside))
        assert all(value.isnan() for value in separation.compute())


def test_ties_count_half_and_none_is_left_out():
    separation = ScoreSeparation()
    separation.update(torch.ones(4), torch.ones(3))
    assert [float(value) for value in separation.compute()] == [0.5, 1.0]
