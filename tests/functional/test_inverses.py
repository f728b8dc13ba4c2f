"""What divides by or inverts something, where rounding is all there is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nc_callbacks.functional import (
    a2_residual,
    centred_mean_weight,
    implicit_weights,
    mse_decomposition,
    nc1_cdnv,
    nc1_quotient,
    nc3,
    near_optimality,
    softmax_expectations,
    wm_cosine,
)
from nc_callbacks.functional.pairs import pair_metrics
from nc_callbacks.functional.rounding import centred
from nc_callbacks.statistics import ClassMoments, SoftmaxStatistics
from tests.functional.networks import blobs, features_of, moments_of, network

NAMES = ["LayerNorm", "LayerNorm with weights", "softmax", "dead and repeated units", "nothing"]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_squared_error_in_float32(name: str, bias: bool) -> None:
    x, targets = blobs(5, 500, False)
    model, (weight, b) = network(name, 12), (torch.randn(5, 12), torch.randn(5) if bias else None)
    parts = [
        torch.stack(mse_decomposition(weight, b, moments_of(features_of(model, x, dtype), targets, 5))).double()
        for dtype in (torch.float64, torch.float32)
    ]
    torch.testing.assert_close(parts[1], parts[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_implicit_weights_in_float32(name: str) -> None:
    x, targets = blobs(5, 500, False)
    model, weight = network(name, 12), 0.1 * torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    implied = []
    for dtype in (torch.float64, torch.float32):
        features = features_of(model, x, dtype)
        moments = moments_of(features, targets, 5, "per_class")
        implied.append(implicit_weights(weight.double(), moments, (features.double(), targets)))
    assert ((implied[1] - implied[0]).norm() / implied[0].norm()).item() < 0.01


@pytest.mark.parametrize("margin", [1.0, 20.0, 80.0])
def test_implicit_weights_late_in_training(margin: float) -> None:
    # Two classes of a constant probability q of the other: w_0 = Σ_W⁻¹(π_0 m_0 − π_1 m_1)/(1 − q) + w_1.
    rng = np.random.default_rng(0)
    targets = torch.arange(60) % 3 // 2
    features = torch.tensor(rng.normal(size=(60, 4))) + targets[:, None]
    moments, weight = moments_of(features, targets, 2, "per_class"), torch.tensor(rng.normal(size=(2, 4)))
    logits = margin * torch.eye(2, dtype=torch.float64)[targets]
    streamed = SoftmaxStatistics(2)
    streamed.update(logits, targets)
    assert moments.within is not None
    drive = moments.priors[0] * moments.means[0] - moments.priors[1] * moments.means[1]
    first = np.linalg.solve(moments.within.numpy(), drive.numpy()) * (1 + math.exp(-margin))
    for expectations in (softmax_expectations(logits, targets), streamed.compute()):
        implied = implicit_weights(weight, moments, expectations)
        np.testing.assert_allclose(implied[0], first + weight[1].numpy(), rtol=1e-9)
        np.testing.assert_allclose(implied[1], -first + weight[0].numpy(), rtol=1e-9)


def test_samples_that_are_all_the_same_have_no_spread() -> None:
    targets = torch.arange(300) % 3
    features = (torch.rand(3, 6, generator=torch.Generator().manual_seed(0)) + 0.1)[targets]
    moments = moments_of(features, targets, 3, "per_class")
    assert a2_residual(moments) == 0
    assert near_optimality(moments).sigma1 == 0
    assert near_optimality(moments).sigma_ratio.isnan()
    # One unit in the last place in one sample is a spread.
    features[0, 0] = torch.nextafter(features[0, 0], torch.tensor(2.0))
    assert near_optimality(moments_of(features, targets, 3)).sigma1 > 0


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_class_at_the_centre_has_no_direction(offset: float) -> None:
    # The third class mean is the mean of all, but for the rounding of thirds in float32.
    a, b = torch.tensor([0.1, 0.7, 0.3]) + offset, torch.tensor([0.2, -0.1, 0.4]) + offset
    means = torch.stack([a, b, (a + b) / 2])
    weight = torch.eye(3)
    for centre in (None, means.mean(0)):
        cosines = wm_cosine(weight, means.double(), centre, precision=2**-23)
        assert cosines.isnan().tolist() == [False, False, True]
    assert wm_cosine(weight, means).isnan().tolist() == [False, False, True]
    assert not centred(means)[2].any()
    assert centred_mean_weight(means)[2].tolist() == [0, 0, 0]
    expected = means.double() - means.double().mean(0)
    np.testing.assert_allclose(centred(means)[:2], expected[:2], rtol=1e-6, atol=1e-7)


def test_class_means_that_are_the_same_up_to_rounding() -> None:
    means = torch.tensor([[1.0, 2.0, 3.0]] * 3, dtype=torch.float64)
    means[1] += 2e-8
    within = torch.eye(3, dtype=torch.float64)
    assert nc1_quotient(within, means, precision=2**-23) == torch.inf
    assert 1e14 < nc1_quotient(within, means) < torch.inf
    assert nc3(torch.eye(3), means, precision=2**-23).isnan()
    assert centred_mean_weight(means, precision=2**-23).isnan().all()


def test_a_pair_of_class_means_that_are_the_same_up_to_rounding() -> None:
    means = torch.tensor([[1.0, 2.0], [1.0, 2.0 + 1e-8], [3.0, 1.0], [2.0, 2.0]], dtype=torch.float64)
    traces = torch.ones(4, dtype=torch.float64)
    assert nc1_cdnv(traces, means, precision=2**-23) == torch.inf
    assert 1e14 < nc1_cdnv(traces, means) < torch.inf
    centred_means = means - means.mean(0)
    assert pair_metrics(centred_means, traces, nearest=1e-7).cdnv == torch.inf
    assert pair_metrics(centred_means, traces, nearest=1e-9).cdnv == nc1_cdnv(traces, means)


def test_moments_in_float32() -> None:
    x, targets = blobs(4, 200, False)
    moments = moments_of(1e-25 * x, targets, 4, "per_class")
    assert moments.covariances is not None
    unit = moments_of(x, targets, 4, "per_class")
    # ClassMoments made by hand, in float32.
    narrow = ClassMoments(moments.counts, moments.means.float(), unit.traces * 0, unit.coordinate_sums * 0)
    near = near_optimality(narrow)
    assert near.mu_ratio.item() == pytest.approx(near_optimality(unit).mu_ratio.item(), rel=1e-5)
