from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from nc_callbacks.functional import mse_decomposition
from nc_callbacks.statistics import ClassMoments, ClassStatistics
from tests import reference_more as reference
from tests.reference import Array, gaussian_classes

DECAYS = [0.0, 1e-3, 1.0]
NAMES = ["balanced", "unbalanced", "p > n", "one_feature", "rank_deficient", "offset"]


def dataset(name: str) -> tuple[Array, Array, int]:
    """Features, targets and the number of classes."""
    counts = {"balanced": [20, 20, 20], "p > n": [5, 3, 2], "offset": [20, 8, 2]}.get(name, [30, 12, 5, 1])
    p = {"p > n": 30, "one_feature": 1}.get(name, 5)
    features, targets = gaussian_classes(counts, p, offset=50 if name == "offset" else 0)
    if name == "rank_deficient":
        features = np.hstack([features, features @ np.random.default_rng(1).normal(size=(p, 3))])
    return features, targets, len(counts)


def gathered(features: Array, targets: Array, k: int, dtype: torch.dtype = torch.float64) -> ClassMoments:
    statistics = ClassStatistics(k)
    x, y = torch.tensor(features, dtype=dtype), torch.tensor(targets)
    for a, b in zip(x.split(7), y.split(7), strict=True):
        statistics.update(a, b)
    return statistics.compute()


def decomposed(
    weight: Array, bias: Array | None, moments: ClassMoments, weight_decay: float, dtype: torch.dtype = torch.float64
) -> list[float]:
    b = None if bias is None else torch.tensor(bias, dtype=dtype)
    return [part.item() for part in mse_decomposition(torch.tensor(weight, dtype=dtype), b, moments, weight_decay)]


def classifier(k: int, p: int, bias: bool) -> tuple[Array, Array | None]:
    rng = np.random.default_rng(p)
    return rng.normal(size=(k, p)), rng.normal(size=k) if bias else None


@pytest.mark.parametrize("weight_decay", DECAYS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_parts_add_up_to_the_loss(name: str, bias: bool, weight_decay: float) -> None:
    features, targets, k = dataset(name)
    weight, b = classifier(k, features.shape[1], bias)
    parts = decomposed(weight, b, gathered(features, targets, k), weight_decay)
    loss = reference.squared_error(weight, b, features, targets, weight_decay)
    assert sum(parts) == pytest.approx(loss, rel=1e-11)
    # A part that is 0 is rounded to either side of it.
    assert min(parts) >= -1e-14 * loss


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("weight_decay", DECAYS)
def test_in_float32(weight_decay: float, bias: bool) -> None:
    features, targets, k = dataset("unbalanced")
    weight, b = classifier(k, features.shape[1], bias)
    parts = decomposed(weight, b, gathered(features, targets, k, torch.float32), weight_decay, torch.float32)
    loss = reference.squared_error(weight, b, features, targets, weight_decay)
    assert sum(parts) == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("weight_decay", DECAYS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_least_squares_leaves_no_perpendicular_part(name: str, bias: bool, weight_decay: float) -> None:
    features, targets, k = dataset(name)
    moments = gathered(features, targets, k)
    weight, b = reference.least_squares(features, targets, k, bias, weight_decay)
    nc1, nc23, perp = decomposed(weight, b, moments, weight_decay)
    # Of a loss of order 1; two routes to W at a condition number of up to 1e6 (offset).
    assert perp == pytest.approx(0, abs=1e-15)
    least = reference.squared_error(weight, b, features, targets, weight_decay)
    assert nc1 + nc23 == pytest.approx(least, rel=1e-9, abs=1e-15)
    other, c = classifier(k, features.shape[1], bias)
    others = decomposed(other, c, moments, weight_decay)
    assert others[:2] == [nc1, nc23]
    excess = reference.squared_error(other, c, features, targets, weight_decay) - least
    assert others[2] == pytest.approx(excess, rel=1e-11)


@pytest.mark.parametrize("weight_decay", DECAYS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", ["balanced", "unbalanced", "one_feature", "p > n"])
def test_parts_of_the_least_squares_classifier(name: str, bias: bool, weight_decay: float) -> None:
    features, targets, k = dataset(name)
    weight, b = reference.least_squares(features, targets, k, bias, weight_decay)
    offset = np.zeros(k) if b is None else b
    means = np.array([features[targets == c].mean(0) for c in range(k)])
    # Its error at the class means, and what spreads around its outputs there, sample by sample.
    errors = weight @ means.T + offset[:, None] - np.eye(k)
    nc23 = sum(np.mean(targets == c) * np.sum(errors[:, c] ** 2) for c in range(k)) / 2
    spread = np.mean([np.sum((weight @ (h - means[y])) ** 2) for h, y in zip(features, targets, strict=True)]) / 2
    nc1 = spread + weight_decay / 2 * (np.sum(weight**2) + np.sum(offset**2))
    parts = decomposed(*classifier(k, features.shape[1], bias), gathered(features, targets, k), weight_decay)
    assert parts[:2] == pytest.approx([nc1, nc23], rel=1e-9, abs=1e-14)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("p", [2, 8])
def test_collapsed_classes_have_no_spread(p: int, bias: bool) -> None:
    targets = np.repeat(np.arange(4), [5, 3, 2, 1])
    features = np.random.default_rng(0).integers(-9, 9, size=(4, p)).astype(float)[targets]
    weight, b = classifier(4, p, bias)
    nc1, nc23, perp = decomposed(weight, b, gathered(features, targets, 4), 0.0)
    assert nc1 == 0
    # Four means in general position can be mapped to four labels where p (or p + 1) is at least 4.
    if p == 8:
        assert nc23 == pytest.approx(0, abs=1e-24)
    else:
        assert nc23 > 0.01
    assert perp > 0.1
    assert decomposed(weight, b, gathered(features, targets, 4), 0.1)[0] > 1e-4


def test_no_part_is_negative() -> None:
    for seed in range(10):
        features, targets = gaussian_classes([5, 3, 2], 30, seed=seed)
        assert min(decomposed(*classifier(3, 30, True), gathered(features, targets, 3), 0.0)) >= 0


def test_a_class_without_samples_is_dropped_by_observed() -> None:
    features, targets, _ = dataset("balanced")
    weight, b = classifier(3, 5, True)
    moments = gathered(features, targets + (targets > 0), 4)
    assert not moments.present[1]
    assert decomposed(weight, b, moments.observed(), 0.1) == decomposed(weight, b, gathered(features, targets, 3), 0.1)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_gradients(weight_decay: float) -> None:
    features, targets, k = dataset("balanced")
    moments = gathered(features, targets, k)
    weight, b = (torch.tensor(a, requires_grad=True) for a in classifier(k, 5, True) if a is not None)
    parts = mse_decomposition(weight, b, moments, weight_decay)
    gradients = torch.autograd.grad(parts[2], [weight, b])
    # Only L_⊥ depends on the classifier: its gradient is that of the loss.
    x, labels = torch.tensor(features), torch.eye(k, dtype=torch.float64)[torch.tensor(targets)]
    loss = (x @ weight.T + b - labels).square().sum(1).mean() / 2
    loss = loss + weight_decay / 2 * (weight.square().sum() + b.square().sum())
    torch.testing.assert_close(gradients, torch.autograd.grad(loss, [weight, b]))
    assert not parts[0].requires_grad
    assert not parts[1].requires_grad


def test_nan_gives_nan() -> None:
    features, targets, k = dataset("balanced")
    features[3, 2] = np.nan
    assert np.isnan(decomposed(*classifier(k, 5, True), gathered(features, targets, k), 0.1)).all()


@pytest.fixture
def moments() -> ClassMoments:
    return gathered(*dataset("balanced"))


@pytest.mark.parametrize("shape", [(3, 4), (4, 5), (5, 3), (15,)])
def test_shape_of_the_weight(moments: ClassMoments, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"weight must have the shape of the class means \(3, 5\)"):
        mse_decomposition(torch.ones(shape), None, moments)


@pytest.mark.parametrize("bias", [torch.ones(4), torch.ones(1), torch.ones(3, 1)])
def test_shape_of_the_bias(moments: ClassMoments, bias: Tensor) -> None:
    with pytest.raises(ValueError, match="bias"):
        mse_decomposition(torch.ones(3, 5), bias, moments)


def test_needs_the_covariance() -> None:
    statistics = ClassStatistics(2, covariance="none")
    statistics.update(torch.eye(2), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="The decomposition needs Σ_W"):
        mse_decomposition(torch.eye(2), None, statistics.compute())


def test_needs_every_class() -> None:
    statistics = ClassStatistics(3)
    statistics.update(torch.eye(2), torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="Every class must have samples"):
        mse_decomposition(torch.ones(3, 2), None, statistics.compute())


@pytest.mark.parametrize("weight_decay", [-1e-9, -1.0])
def test_negative_weight_decay(moments: ClassMoments, weight_decay: float) -> None:
    with pytest.raises(ValueError, match="weight_decay must be at least 0"):
        mse_decomposition(torch.ones(3, 5), None, moments, weight_decay)
