"""The whitened head against float64 from its definition, and where Σ or the class means are rounding."""

import numpy as np
import pytest
import torch
from sklearn.covariance import OAS
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from nc_callbacks import ClassStatistics
from nc_callbacks.functional import gcv_shrinkage, oas_shrinkage, whitened_weight
from nc_callbacks.statistics import ClassMoments
from tests import reference
from tests.functional.networks import LAYERS, blobs, features_of, moments_of, network


def expected(features, targets, k, a, priors="uniform"):
    """Weight and bias in float64, of the classes that have samples."""
    h, seen = np.asarray(features, dtype=np.float64), [c for c in range(k) if (targets == c).any()]
    means = np.stack([h[targets == c].mean(0) for c in seen])
    own = np.concatenate([h[targets == c] - h[targets == c].mean(0) for c in seen])
    within = own.T @ own / len(own)
    sigma = (1 - a) * within + a * np.trace(within) / len(within) * np.eye(len(within))
    weight = np.linalg.solve(sigma, (means - means.mean(0)).T).T
    bias = -0.5 * (means * np.linalg.solve(sigma, means.T).T).sum(1)
    if priors == "empirical":
        bias += np.log([(targets == c).mean() for c in seen])
    return weight, bias


def moments(features, targets, k, dtype=torch.float64):
    statistics = ClassStatistics(k)
    statistics.update(torch.as_tensor(features).to(dtype), torch.as_tensor(targets))
    return statistics.compute()


@pytest.mark.parametrize("priors", ["uniform", "empirical"])
@pytest.mark.parametrize("a", [0.0, 0.01, 0.5, 1.0])
@pytest.mark.parametrize("name", reference.DATASETS)
def test_definition(name, a, priors):
    features, targets, k = reference.dataset(name)
    if a == 0 and name in ("few_samples", "p > n"):
        with pytest.raises(ValueError, match="in which the class means differ: it takes a larger shrinkage"):
            whitened_weight(moments(features, targets, k), a, priors)
        return
    weight, bias = whitened_weight(moments(features, targets, k), a, priors)
    w, b = expected(features, targets, k, a, priors)
    np.testing.assert_allclose(weight, w, rtol=1e-6, atol=1e-8 * np.abs(w).max())
    np.testing.assert_allclose(bias, b, rtol=1e-6, atol=1e-8 * np.abs(b).max())


@pytest.mark.parametrize("name", reference.DATASETS)
def test_float32_features_decide_as_float64_ones(name):
    features, targets, k = reference.dataset(name)
    features = torch.as_tensor(features).float()
    found = moments(features, targets, k, torch.float32)
    a = max(float(oas_shrinkage(found)), float(gcv_shrinkage(found)))
    weight, bias = whitened_weight(found)
    w, b = expected(features, targets, k, a)
    logits = features.double().numpy() @ w.T + b
    mine = (features.double() @ weight.T + bias).numpy()
    scale = np.abs(logits - logits.mean(1, keepdims=True)).max()
    np.testing.assert_allclose(
        mine - mine.mean(1, keepdims=True), logits - logits.mean(1, keepdims=True), atol=1e-4 * scale
    )


def test_without_shrinkage_it_is_fishers_discriminant():
    features, targets = reference.gaussian_classes([50, 30, 40], 6)
    lda = LinearDiscriminantAnalysis(solver="lsqr").fit(features, targets)
    weight, bias = whitened_weight(moments(features, targets, 3), 0.0, "empirical")
    logits = features @ weight.numpy().T + bias.numpy()
    theirs = lda.decision_function(features)
    np.testing.assert_allclose(logits - logits[:, :1], theirs - theirs[:, :1], rtol=1e-8, atol=1e-7)


@pytest.mark.parametrize(("n", "p"), [(300, 5), (40, 30), (12, 40)])
def test_shrinkage_is_that_of_the_formula(n, p):
    features, targets = reference.gaussian_classes([n // 3] * 3, p)
    found = float(oas_shrinkage(moments(features, targets, 3)))
    own = np.concatenate([features[targets == c] - features[targets == c].mean(0) for c in range(3)])
    s, degrees = own.T @ own, len(own) - 3
    square, trace = np.trace(s @ s), np.trace(s)
    share = ((1 - 2 / p) * square + trace**2) / ((degrees + 1 - 2 / p) * (square - trace**2 / p))
    assert found == pytest.approx(min(1, share), rel=1e-9)
    # scikit-learn leaves out 2/p and counts the samples of one class.
    assert found == pytest.approx(OAS().fit(own[: degrees or 1]).shrinkage_, rel=0.35)


@pytest.mark.parametrize(("n", "p"), [(90, 5), (60, 30), (24, 40)])
def test_cross_validated_shrinkage_is_that_of_ridge_regression(n, p):
    """Against the hat matrix of a ridge regression of the centred labels on all features."""
    features, targets = reference.gaussian_classes([n // 2, n // 3, n // 6], p, spread=2.0)
    h, y = features - features.mean(0), np.eye(3)[targets] - np.eye(3)[targets].mean(0)
    own = np.concatenate([features[targets == c] - features[targets == c].mean(0) for c in range(3)])
    level, samples = (own**2).sum() / len(h) / p, len(h)

    def error(a):
        hat = h @ np.linalg.solve(h.T @ h + samples * level * a / (1 - a) * np.eye(p), h.T)
        return ((y - hat @ y) ** 2).sum() / (1 - (1 + np.trace(hat)) / samples) ** 2

    found = float(gcv_shrinkage(moments(features, targets, 3)))
    others = 1 / (1 + np.exp(-np.linspace(-18, 9, 400)))
    assert error(found) <= min(map(error, others)) * (1 + 1e-6)


def test_isotropic_within_gives_centred_means():
    """Assumption 2: where Σ_W is a multiple of the identity, the weight is that of centred means."""
    means = torch.tensor([[3.0, 0, 1], [0, 1, 1], [0, 0, 4]], dtype=torch.float64)
    found = ClassMoments(torch.tensor([9, 9, 9]), means, torch.ones(3), torch.ones(3), 0.25 * torch.eye(3).double())
    weight, _ = whitened_weight(found)
    torch.testing.assert_close(weight, 4 * (means - means.mean(0)))


def test_a_class_without_samples_is_never_chosen():
    features, targets = reference.gaussian_classes([20, 20, 20], 4)
    targets = targets * 2  # classes 1 and 3 to 5 have none
    found = moments(features, targets, 6)
    weight, bias = whitened_weight(found, 0.1)
    w, b = expected(features, targets, 6, 0.1)
    np.testing.assert_allclose(weight[[0, 2, 4]], w, rtol=1e-8)
    np.testing.assert_allclose(bias[[0, 2, 4]], b, rtol=1e-8)
    assert not weight[[1, 3, 5]].any()
    assert (bias[[1, 3, 5]] == -torch.inf).all()


@pytest.mark.parametrize("a", [0.0, 1e-9, 0.01])
@pytest.mark.parametrize("name", LAYERS)
def test_directions_that_rounding_makes_take_no_part(name, a):
    """Features that obey linear relations: the logits in float32 are those of float64."""
    k, p = 4, 12
    model = network(name, p)
    x, targets = blobs(k, 60 * k, True)
    exact, features = (features_of(model, x, dtype) for dtype in (torch.float64, torch.float32))
    h = exact.numpy()
    seen = reference.moments(h, targets.numpy(), k)
    values, vectors = np.linalg.eigh((1 - a) * seen.within + a * np.trace(seen.within) / p * np.eye(p))
    there = vectors[:, values > 1e-10 * values[-1] if a < 1e-6 else values > 0]
    small = there.T @ ((1 - a) * seen.within + a * np.trace(seen.within) / p * np.eye(p)) @ there
    weight = (there @ np.linalg.solve(small, there.T @ (seen.means - seen.means.mean(0)).T)).T
    bias = -0.5 * (seen.means * weight).sum(1) - 0.5 * weight @ seen.means.mean(0)
    expected_logits = h @ weight.T + bias
    found_weight, found_bias = whitened_weight(moments_of(features, targets, k), a)
    logits = (features.double() @ found_weight.T + found_bias).numpy()
    difference = (logits - logits.mean(1, keepdims=True)) - (expected_logits - expected_logits.mean(1, keepdims=True))
    assert np.abs(difference).max() < 2e-3 * np.abs(expected_logits - expected_logits.mean(1, keepdims=True)).max()


def test_gradients_are_those_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(5, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    means = torch.randn(3, 5, generator=generator, dtype=torch.float64, requires_grad=True)

    def head(root, means):
        return whitened_weight(
            ClassMoments(torch.tensor([8, 9, 4]), means, means[:, 0], means[:, 0], root @ root.T), 0.1
        )

    assert torch.autograd.gradcheck(head, (root, means))


def test_refusals():
    features, targets = reference.gaussian_classes([20, 20], 4)
    found = moments(features, targets, 2)
    for a in (-0.1, 1.5):
        with pytest.raises(ValueError, match=f"shrinkage must be a share between 0 and 1, got {a}"):
            whitened_weight(found, a)
    with pytest.raises(ValueError, match="priors must be"):
        whitened_weight(found, priors="balanced")
    with pytest.raises(ValueError, match="Σ_W is 0: each class has one sample"):
        whitened_weight(moments(np.eye(3), np.arange(3), 3))
    with pytest.raises(ValueError, match="At least 2 classes must have samples, 1 have"):
        whitened_weight(moments(features, np.zeros(40, dtype=int), 2))
    bare = ClassStatistics(2, covariance="none")
    bare.update(torch.as_tensor(features), torch.as_tensor(targets))
    with pytest.raises(ValueError, match='gathered with covariance="none"'):
        whitened_weight(bare.compute())


def test_nan_moments_give_nan():
    features, targets = reference.gaussian_classes([20, 20], 4)
    features[3, 2] = np.nan
    weight, bias = whitened_weight(moments(features, targets, 2), 0.1)
    assert weight.isnan().all()
    assert bias.isnan().all()
