"""All averages over pairs of classes together, and what stands in for k × k matrices where classes are many."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nc_callbacks import functional as F_nc
from nc_callbacks.functional import _common, directions
from nc_callbacks.functional.pairs import pair_metrics
from tests import reference


def classes(k: int, p: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(k * p)
    return reference.centred(rng.normal(size=(k, p)) + 1), rng.uniform(0.1, 1, size=k)


@pytest.mark.parametrize("side", [1, 3, 7, 1000])
@pytest.mark.parametrize(("k", "p"), [(2, 3), (7, 20), (21, 4)])
def test_together_they_equal_their_definitions(monkeypatch: pytest.MonkeyPatch, k: int, p: int, side: int) -> None:
    monkeypatch.setattr(_common, "BLOCK_BYTES", side**2 * 8)
    m, v = classes(k, p)
    found = pair_metrics(torch.tensor(m), torch.tensor(v))
    i, j = np.triu_indices(k, 1)
    unit = m / np.linalg.norm(m, axis=1, keepdims=True)
    logs = -np.log(np.linalg.norm(unit[i] - unit[j], axis=1))
    ratios = (v[i] + v[j]) / (2 * np.linalg.norm(m[i] - m[j], axis=1) ** 2)
    assert found.cdnv is not None
    assert found.cdnv.item() == pytest.approx(ratios.mean(), rel=1e-12)
    assert found.equiangularity.item() == pytest.approx(np.abs((unit[i] * unit[j]).sum(1) + 1 / (k - 1)).mean())
    assert found.uniformity.item() == pytest.approx(logs.mean(), rel=1e-12)
    assert found.uniformity_var.item() == pytest.approx(logs.var(), rel=1e-10, abs=1e-15)


@pytest.mark.parametrize("magnitude", [1, 1e-30, 1e30])
@pytest.mark.parametrize("apart", [1, 1e-3, 1e-7])
def test_float32_products_of_many_classes_keep_their_digits(
    monkeypatch: pytest.MonkeyPatch, apart: float, magnitude: float
) -> None:
    """Also where directions and means nearly coincide, and where squares leave float32's range."""
    k, p = 60, 8
    m, v = classes(k, p)
    rng = np.random.default_rng(1)
    m[1::2] = m[::2] * (1 + apart * rng.normal(size=(k // 2, 1))) + apart * rng.normal(size=(k // 2, p))
    means, traces = torch.tensor(m * magnitude), torch.tensor(v * magnitude**2)
    plain = pair_metrics(means, traces)
    monkeypatch.setattr(_common, "MANY", 10)
    many = pair_metrics(means, traces)
    for name in ("cdnv", "equiangularity", "uniformity", "uniformity_var"):
        exact, found = getattr(plain, name), getattr(many, name)
        assert found.dtype == torch.float64
        assert found.item() == pytest.approx(exact.item(), rel=2e-6), name


def test_a_mean_at_the_centre_has_a_variance_ratio() -> None:
    """Its direction has no value, its distances have."""
    m, v = torch.tensor([[1.0, 0], [-1, 0], [0, 0]]), torch.tensor([2.0, 4, 6])
    found = pair_metrics(m, v)
    assert found.cdnv is not None
    assert found.cdnv.item() == pytest.approx((6 / 8 + 8 / 2 + 10 / 2) / 3)
    assert found.equiangularity.isnan()


def test_traces_are_optional_and_one_a_class() -> None:
    m, _ = classes(5, 3)
    assert pair_metrics(torch.tensor(m)).cdnv is None
    with pytest.raises(ValueError, match=r"traces must be \(5,\) .* got \(4,\)"):
        pair_metrics(torch.tensor(m), torch.ones(4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("k", "p"), [(12, 6), (13, 6), (14, 6), (200, 5)])
def test_etf_distances_of_many_classes(k: int, p: int, dtype: torch.dtype) -> None:
    m, _ = classes(k, p)
    w = m + np.random.default_rng(0).normal(size=(k, p))
    means, weight = torch.tensor(m, dtype=dtype), torch.tensor(w, dtype=dtype)
    rel = {torch.float32: 1e-5, torch.float64: 1e-13}[dtype]
    assert F_nc.nc2_etf(means).item() == pytest.approx(reference.nc2_etf(m), rel=rel)
    # Weight rows are not centred.
    assert F_nc.nc2_etf(weight + 1).item() == pytest.approx(reference.nc2_etf(w + 1), rel=rel)
    assert F_nc.nc3_etf(weight, means).item() == pytest.approx(reference.nc3_etf(w, m), rel=rel)


@pytest.mark.parametrize("scale", [1, 1e-5, 1e-9])
def test_nc1_of_many_classes_with_features_of_all_scales(scale: float) -> None:
    # The squared singular values of M span what float64 has; nc1 does not depend on the features' scales.
    m, _ = classes(300, 8)
    within = np.diag(np.linspace(1, 2, 8))
    expected = reference.nc1(within, m)
    scales = np.ones(8)
    scales[:4] = scale
    found = F_nc.nc1(torch.tensor(within * np.outer(scales, scales)), torch.tensor(m * scales))
    assert found.item() == pytest.approx(expected, rel=1e-10 / scale**0.5)


@pytest.mark.parametrize("rows", [1, 7, 39])
def test_nc1_and_its_gradient_take_the_same_value(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(_common, "BLOCK_BYTES", rows * 6 * 8)
    m, _ = classes(40, 6)
    means, within = torch.tensor(m), torch.eye(6, dtype=torch.float64)
    plain = F_nc.nc1(within, means)
    assert F_nc.nc1(within, means.requires_grad_()).item() == pytest.approx(plain.item(), rel=1e-12)


@pytest.mark.parametrize(("spread", "by_gram"), [(1.0, True), (1e-2, True), (1e-5, False)])
def test_nc1_of_many_classes_however_directions_are_found(spread: float, by_gram: bool) -> None:
    """From MᵀM where its squares cost no digits that count, from the triangle of M elsewhere."""
    k, p = 300, 6
    rng = np.random.default_rng(0)
    means = rng.normal(size=(k, p)) * np.geomspace(1, spread, p) @ reference.rotation(p, 3)
    root = rng.normal(size=(p, 2 * p)) * np.geomspace(1, spread, p)[:, None]
    within = reference.rotation(p, 3).T @ (root @ root.T) @ reference.rotation(p, 3)
    matrix = torch.tensor(means) - torch.tensor(means).mean(0)
    assert (directions._by_gram(matrix) is not None) == by_gram
    inverse = np.linalg.pinv(reference.centred(means), rcond=1e-12)
    expected = np.trace(inverse.T @ within @ inverse)
    assert F_nc.nc1(torch.tensor(within), torch.tensor(means)).item() == pytest.approx(
        expected, rel=1e-8 if by_gram else 1e-6
    )


@pytest.mark.parametrize("magnitude", [1, 1e-30, 1e30])
@pytest.mark.parametrize("rows", ["normal", "of very different sizes", "alike", "of one sign"])
def test_float32_products_of_many_classes_keep_distances_to_the_etf(
    monkeypatch: pytest.MonkeyPatch, rows: str, magnitude: float
) -> None:
    """Also where all products are the same number, and are rounded to the same side."""
    k, p = 1_300, 12
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, k, p))
    if rows == "of very different sizes":
        a, b = a * np.logspace(-12, 0, k)[:, None], b * np.logspace(0, -12, k)[:, None]
    elif rows == "alike":
        a, b = np.full((2, k, p), 0.7) + 1e-6 * np.stack([a, b])
    elif rows == "of one sign":
        a, b = np.abs(a), np.abs(b)
    one, other = torch.tensor(a * magnitude), torch.tensor(b * magnitude)
    found = F_nc.nc2_etf(one), F_nc.nc3_etf(other, one, torch.zeros(p, dtype=torch.float64))
    monkeypatch.setattr(_common, "MANY", k)
    plain = F_nc.nc2_etf(one), F_nc.nc3_etf(other, one, torch.zeros(p, dtype=torch.float64))
    etf = (np.eye(k) - 1 / k) / (k - 1) ** 0.5
    for fast, slow, product in zip(found, plain, (a @ a.T, b @ a.T), strict=True):
        exact = np.linalg.norm(product / np.linalg.norm(product) - etf)
        assert slow.item() == pytest.approx(exact, rel=1e-10)
        assert fast.item() == pytest.approx(exact, rel=1e-7)
        assert fast.dtype == torch.float64
