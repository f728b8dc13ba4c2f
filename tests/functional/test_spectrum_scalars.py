"""Scalars of a spectrum against the SVD of the activations, and spectra known on paper."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nc_callbacks.functional import present_eigenvalues, rankme, spectrum_decay, stable_rank
from nc_callbacks.statistics import ClassStatistics
from tests.reference import Array, rotation


def activations(name: str) -> Array:
    rng = np.random.default_rng(0)
    return {
        "n > p": lambda: rng.normal(size=(90, 60)) * np.linspace(1, 3, 60) + 1,
        "p > n": lambda: rng.normal(size=(20, 70)) + 1,
        "rank 3": lambda: rng.normal(size=(40, 3)) @ rng.normal(size=(3, 55)),
        "few": lambda: rng.normal(size=(30, 5)) * 2.0 ** -np.arange(5) @ rotation(5),
    }[name]()


NAMES = ["n > p", "p > n", "rank 3", "few"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_from_streamed_moments(name: str, dtype: torch.dtype) -> None:
    x = torch.tensor(activations(name), dtype=dtype)
    statistics = ClassStatistics(2)
    for part, labels in zip(x.split(7), (torch.arange(len(x)) % 2).split(7), strict=True):
        statistics.update(part, labels)
    moments = statistics.compute()
    matrix, n = moments.second_moment, len(x)
    singular = np.linalg.svd(x.double().numpy(), compute_uv=False)
    singular = singular[singular > 1e-4 * singular[0]]
    q = singular / singular.sum()
    assert rankme(matrix, n, moments.precision).item() == pytest.approx(np.exp(-(q * np.log(q)).sum()), rel=1e-4)
    assert stable_rank(matrix).item() == pytest.approx((singular**2).sum() / singular[0] ** 2, rel=1e-5)
    first = 0 if min(x.shape) < 50 else 10
    present = singular[first:]
    alpha, fit = spectrum_decay(matrix, n, moments.precision)
    x_of_fit, y = np.log(np.arange(first + 1, first + 1 + len(present))), np.log(present**2 / n)
    if len(present) < 3:
        assert alpha.isnan()
        return
    slope, offset = np.polyfit(x_of_fit, y, 1)
    residual = y - slope * x_of_fit - offset
    assert alpha.item() == pytest.approx(-slope, rel=1e-3)
    assert fit.item() == pytest.approx(1 - residual @ residual / ((y - y.mean()) ** 2).sum(), rel=1e-3)


@pytest.mark.parametrize("k", [4, 10])
@pytest.mark.parametrize("p", [64, 512])
def test_collapsed_features_in_float32_have_as_many_directions_as_classes(k: int, p: int) -> None:
    generator = torch.Generator().manual_seed(0)
    means = torch.linalg.qr(torch.randn(p, k, generator=generator)).Q.T * 20
    targets = torch.arange(1000) % k
    statistics = ClassStatistics(k)
    statistics.update(means[targets], targets)
    moments = statistics.compute()
    # With the noise of float32 as directions of their own it would be more.
    assert rankme(moments.second_moment, 1000, moments.precision).item() == pytest.approx(k, rel=1e-5)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("p", [30, 200])
def test_power_laws(alpha: float, p: int) -> None:
    values = np.arange(1.0, p + 1) ** -alpha
    if p >= 50:
        values[:10] = 7.0  # these are not fitted
    matrix = torch.tensor((rotation(p) * values) @ rotation(p).T)
    found, fit = spectrum_decay(matrix)
    assert found.item() == pytest.approx(alpha, rel=1e-6)
    assert fit.item() == pytest.approx(1)


def test_flat_and_tiny_spectra() -> None:
    alpha, fit = spectrum_decay(torch.eye(60, dtype=torch.float64))
    assert abs(alpha.item()) < 1e-12
    assert fit.isnan()
    assert spectrum_decay(torch.eye(2))[0].isnan()
    assert rankme(torch.eye(7)).item() == pytest.approx(7)
    assert stable_rank(torch.diag(torch.tensor([1.0, 0.0]))).item() == pytest.approx(1)


def test_no_more_directions_than_samples() -> None:
    assert present_eigenvalues(torch.eye(5), samples=2).tolist() == [1, 1, 0, 0, 0]
    assert present_eigenvalues(torch.full((3, 3), torch.nan)).isnan().all()
