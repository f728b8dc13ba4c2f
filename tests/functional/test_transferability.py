"""LogME and the H-score from moments against float64 computations from all features."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from nc_callbacks import ClassStatistics
from nc_callbacks.functional import h_score, log_evidence
from tests import reference
from tests.functional.networks import LAYERS, blobs, features_of, moments_of, network


def moments(features, targets, k, dtype=torch.float64):
    statistics = ClassStatistics(k)
    statistics.update(torch.as_tensor(features).to(dtype), torch.as_tensor(targets))
    return statistics.compute()


def gaussian_log_evidence(h, y, alpha, beta):
    """log N(y; 0, I/β + HHᵀ/α) by the n × n covariance of y itself."""
    n = len(y)
    covariance = np.eye(n) / beta + h @ h.T / alpha
    return -0.5 * (n * np.log(2 * np.pi) + np.linalg.slogdet(covariance)[1] + y @ np.linalg.solve(covariance, y))


def best_evidence(h, y):
    """The largest log p(y)/n, with α and β, from the singular vectors of all features and the residuals of all y."""
    n = len(h)
    u, singular, _ = np.linalg.svd(h, full_matrices=False)
    kept = singular > 1e-13 * singular[0] * max(h.shape)
    u, squares = u[:, kept], singular[kept] ** 2
    inside, outside = (u.T @ y) ** 2, ((y - u @ (u.T @ y)) ** 2).sum()

    def beta(t):
        return n / (outside + (inside * t / (t + squares)).sum())

    def negative(log_t):
        t = np.exp(log_t)
        return n / 2 * (np.log(2 * np.pi / beta(t)) + 1) + np.log1p(squares / t).sum() / 2

    grid = np.linspace(np.log(squares[0]) - 30, np.log(squares[0]) + 18, 150)
    best = grid[np.argmin([negative(point) for point in grid])]
    found = minimize_scalar(negative, bounds=(best - 1, best + 1), options={"xatol": 1e-10})
    t = np.exp(found.x)
    return -found.fun, beta(t) * t, beta(t)


def expected(features, targets, k):
    h = np.asarray(features, dtype=np.float64)
    labels = [(targets == c).astype(np.float64) for c in range(k) if (targets == c).any()]
    return np.mean([best_evidence(h, y)[0] / len(h) for y in labels])


def test_the_evidence_compared_with_is_that_of_a_gaussian():
    h, targets, k = reference.dataset("unbalanced")
    for y in ((targets == c).astype(float) for c in range(k)):
        value, alpha, beta = best_evidence(h, y)
        assert value == pytest.approx(gaussian_log_evidence(h, y, alpha, beta), rel=1e-9)
        for factor in (0.99, 1.01):
            for other in ((factor * alpha, beta), (alpha, factor * beta)):
                assert gaussian_log_evidence(h, y, *other) <= value + 1e-9


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", [name for name in reference.DATASETS if name not in ("few_samples", "p > n")])
def test_log_evidence_is_that_of_all_features(name, dtype):
    features, targets, k = reference.dataset(name)
    features = torch.as_tensor(features).to(dtype)
    found = float(log_evidence(moments(features, targets, k, dtype)))
    assert found == pytest.approx(expected(features.double().numpy(), targets, k), rel=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_log_evidence_of_features_of_less_than_full_rank(name):
    k, p = 4, 12
    x, targets = blobs(k, 120, False)
    exact, features = (features_of(network(name, p), x, dtype) for dtype in (torch.float64, torch.float32))
    assert float(log_evidence(moments_of(features, targets, k))) == pytest.approx(
        expected(exact.numpy(), targets.numpy(), k), abs=1e-5
    )


def test_log_evidence_where_the_features_say_nothing():
    """The same two rows in both classes: the evidence of a normal y with no features, at α → ∞."""
    h, targets = np.array([[1.0], [-1.0]] * 8), np.repeat([0, 1], 8)
    variance = 0.5  # of y ∈ {0, 1} around 0
    expected_value = -0.5 * (np.log(2 * np.pi * variance) + 1)
    assert float(log_evidence(moments(h, targets, 2))) == pytest.approx(expected_value, abs=1e-6)


def test_log_evidence_at_collapse_is_finite_and_above_all_else():
    targets = np.arange(60) % 3
    collapsed = float(log_evidence(moments(np.eye(3)[targets], targets, 3)))
    noisy = np.eye(3)[targets] + 1e-3 * np.random.default_rng(0).normal(size=(60, 3))
    assert np.isfinite(collapsed)
    assert collapsed > float(log_evidence(moments(noisy, targets, 3))) + 1


def test_columns_that_repeat_or_are_zero_add_nothing_to_the_rank():
    features, targets = reference.gaussian_classes([30, 20, 10], 4)
    wide = np.concatenate([features, 0 * features], 1)
    assert float(log_evidence(moments(wide, targets, 3))) == pytest.approx(
        float(log_evidence(moments(features, targets, 3))), rel=1e-9
    )
    repeated = np.concatenate([features, features[:, :1]], 1)
    assert float(log_evidence(moments(repeated, targets, 3))) == pytest.approx(expected(repeated, targets, 3), abs=1e-6)


def pseudo_inverse_score(features, targets):
    """As in Bao et al.'s code: np.cov of the features and of each sample's class mean."""
    h = np.asarray(features, dtype=np.float64)
    g = np.stack([h[targets == y].mean(0) for y in targets])
    total, between = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (h, g))
    return np.trace(np.linalg.pinv(total, rcond=1e-12, hermitian=True) @ between)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", reference.DATASETS)
def test_h_score_is_that_of_all_features(name, dtype):
    features, targets, k = reference.dataset(name)
    features = torch.as_tensor(features).to(dtype)
    found = float(h_score(moments(features, targets, k, dtype)))
    assert found == pytest.approx(pseudo_inverse_score(features.double().numpy(), targets), rel=1e-4)
    assert 0 <= found <= min(k - 1, features.shape[1]) + 1e-9


@pytest.mark.parametrize("name", LAYERS)
def test_h_score_of_features_of_less_than_full_rank(name):
    k, p = 4, 12
    x, targets = blobs(k, 120, False)
    exact, features = (features_of(network(name, p), x, dtype) for dtype in (torch.float64, torch.float32))
    expected_score = pseudo_inverse_score(exact.numpy(), targets.numpy())
    assert float(h_score(moments_of(features, targets, k))) == pytest.approx(expected_score, rel=1e-3)


@pytest.mark.parametrize("name", reference.DATASETS)
def test_regularised_h_score(name):
    features, targets, k = reference.dataset(name)
    n, p = features.shape
    total = np.atleast_2d(np.cov(features, rowvar=False, bias=True))
    square, trace = np.trace(total @ total), np.trace(total)
    gap = (n - 2 / p) * (square - trace**2 / p)
    a = min(1, ((1 - 2 / p) * square + trace**2) / gap) if gap > 1e-9 * square else 1
    g = np.stack([features[targets == y].mean(0) for y in targets])
    shrunk = (1 - a) * total + a * trace / p * np.eye(p)
    expected_score = (1 - a) * np.trace(np.linalg.solve(shrunk, np.atleast_2d(np.cov(g, rowvar=False, bias=True))))
    found = float(h_score(moments(features, targets, k), regularised=True))
    assert found == pytest.approx(expected_score, rel=1e-6, abs=1e-9)


def test_scores_do_not_depend_on_the_unit_and_take_classes_without_samples():
    features, targets = reference.gaussian_classes([30, 20, 10], 4)
    for score in (log_evidence, h_score, lambda m: h_score(m, regularised=True)):
        one = float(score(moments(features, targets, 3)))
        for factor in (1e-60, 1e60):
            assert float(score(moments(factor * features, targets, 3))) == pytest.approx(one, rel=1e-6)
        assert float(score(moments(features, 2 * targets, 5))) == pytest.approx(one, rel=1e-9)


def test_gradients_are_those_of_finite_differences():
    features, targets = reference.gaussian_classes([12, 9], 2)
    found = moments(features, targets, 2)

    def scores(means, root):
        of = replace(found, means=means, within=root @ root.T)
        return log_evidence(of), h_score(of), h_score(of, regularised=True)

    root = torch.linalg.cholesky(found.within)
    inputs = found.means.clone().requires_grad_(), root.requires_grad_()
    assert torch.autograd.gradcheck(scores, inputs, atol=1e-4)


def test_nan_moments_give_nan():
    features, targets = reference.gaussian_classes([20, 20], 4)
    features[3, 2] = np.nan
    found = moments(features, targets, 2)
    assert all(score.isnan() for score in (log_evidence(found), h_score(found), h_score(found, regularised=True)))
