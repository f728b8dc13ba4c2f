"""Very large and very small numbers, autocast, and arguments that fit nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import nc_callbacks.functional as F_nc
from nc_callbacks.statistics import ClassMoments, ClassStatistics

generator = torch.Generator().manual_seed(0)
MEANS = torch.randn(5, 4, generator=generator)
WEIGHT = torch.randn(5, 4, generator=generator)
FEATURES = torch.randn(30, 4, generator=generator)
SECOND_MOMENT = FEATURES.T @ FEATURES
LOGITS = FEATURES @ WEIGHT.T

OF_VECTORS: dict[str, Callable[[Tensor], Any]] = {
    "nc2_equinorm": F_nc.nc2_equinorm,
    "nc2_equiangularity": F_nc.nc2_equiangularity,
    "nc2_equiangularity_signed": lambda v: F_nc.nc2_equiangularity(v, signed=True),
    "nc2_etf": F_nc.nc2_etf,
    "nc2_etf of many classes": lambda v: F_nc.nc2_etf(v[:, :2]),
    "nc2_uniformity": lambda v: torch.stack(F_nc.nc2_uniformity(v)),
    "nc3": lambda v: F_nc.nc3(WEIGHT.to(v.dtype), v),
    "nc3 of the weight": lambda v: F_nc.nc3(v, MEANS.to(v.dtype)),
    "nc3_etf": lambda v: F_nc.nc3_etf(WEIGHT.to(v.dtype), v),
    "nc3_uniform_duality": lambda v: F_nc.nc3_uniform_duality(WEIGHT.to(v.dtype), v),
    "wm_cosine": lambda v: F_nc.wm_cosine(v, MEANS.to(v.dtype)),
    "nc5": lambda v: F_nc.nc5(v, WEIGHT[0].to(v.dtype)),
    "nc5 of the other": lambda v: F_nc.nc5(WEIGHT.to(v.dtype), v[0]),
    "centred_mean_weight": F_nc.centred_mean_weight,
    "centred_mean_weight, frobenius": lambda v: F_nc.centred_mean_weight(v, "frobenius"),
    "nc1, of a scale": lambda v: F_nc.nc1(torch.eye(4).double() * float(v.double().norm()) ** 2, v.double()),
    "nc1_cdnv, of a scale": lambda v: F_nc.nc1_cdnv(
        torch.full((5,), float(v.double().norm()) ** 2, dtype=torch.float64), v
    ),
    "nearest_mean": lambda v: F_nc.nearest_mean(v, v).double(),
}


@pytest.mark.parametrize("scale", [1e-36, 1e-22, 1e22, 1e35])
@pytest.mark.parametrize("name", OF_VECTORS)
def test_float32_of_any_size(name: str, scale: float) -> None:
    expected = OF_VECTORS[name](MEANS.double())
    torch.testing.assert_close(OF_VECTORS[name](scale * MEANS).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-250, 1e-170, 1e170, 1e250])
@pytest.mark.parametrize("name", [name for name in OF_VECTORS if "of a scale" not in name])
def test_float64_of_any_size(name: str, scale: float) -> None:
    expected = OF_VECTORS[name](MEANS.double())
    torch.testing.assert_close(OF_VECTORS[name](scale * MEANS.double()), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("k", [5, 20])
def test_one_row_far_smaller_than_the_others(k: int) -> None:
    vectors = torch.randn(k, 4, generator=torch.Generator().manual_seed(1))
    small = torch.cat([1e-30 * vectors[:1], vectors[1:]])
    for signed in (False, True):
        torch.testing.assert_close(
            F_nc.nc2_equiangularity(small, signed), F_nc.nc2_equiangularity(vectors, signed), rtol=1e-5, atol=1e-6
        )
    torch.testing.assert_close(F_nc.wm_cosine(small, vectors), F_nc.wm_cosine(vectors, vectors))


@pytest.mark.parametrize("function", [F_nc.nc1, F_nc.nc1_quotient])
def test_variances_that_have_lost_their_digits_are_refused(function: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match=r"within must be normal numbers of torch.float32, got at most 1e-42"):
        function(1e-42 * torch.eye(4), 1e-21 * MEANS)
    with pytest.raises(ValueError, match="traces must be normal numbers"):
        F_nc.nc1_cdnv(torch.full((5,), 1e-42), 1e-21 * MEANS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert function(torch.zeros(4, 4), MEANS) == 0


OF_MOMENTS: dict[str, Callable[[ClassMoments], Tensor]] = {
    "gcv_shrinkage": F_nc.gcv_shrinkage,
    "h_score": F_nc.h_score,
    "log_evidence": F_nc.log_evidence,
    "mahalanobis_score": lambda m: F_nc.mahalanobis_score(FEATURES, m),
    "mse_decomposition": lambda m: torch.stack(F_nc.mse_decomposition(WEIGHT, None, m)),
    "nc1_cdnv_corrected": F_nc.nc1_cdnv_corrected,
    "nc1_corrected": F_nc.nc1_corrected,
    "near_optimality": lambda m: F_nc.near_optimality(m).mu1,
    "neco_score": lambda m: F_nc.neco_score(FEATURES, m),
    "oas_shrinkage": F_nc.oas_shrinkage,
    "whitened_weight": lambda m: F_nc.whitened_weight(m)[0],
    "wm_cosine_corrected": lambda m: F_nc.wm_cosine_corrected(WEIGHT, m),
}


def moments() -> ClassMoments:
    """In float32, which autocast would narrow."""
    statistics = ClassStatistics(5)
    for scale in (1, -1, 0.5):
        statistics.update(4 * MEANS[torch.arange(30) % 5] + scale * FEATURES, torch.arange(30) % 5)
    found = statistics.compute()
    narrow = {name: getattr(found, name).float() for name in ("means", "within", "traces")}
    return replace(found, **narrow)


AUTOCAST: dict[str, Callable[[], Tensor]] = {
    **{name: lambda f=f: f(MEANS) for name, f in OF_VECTORS.items()},
    "nc1": lambda: F_nc.nc1(torch.eye(4), MEANS),
    "nc1_quotient": lambda: F_nc.nc1_quotient(torch.eye(4), MEANS),
    "nc4": lambda: F_nc.nc4(FEATURES, WEIGHT, MEANS),
    "nearest_mean": lambda: F_nc.nearest_mean(FEATURES, MEANS),
    "effective_rank": lambda: F_nc.effective_rank(SECOND_MOMENT),
    "class_separation": lambda: F_nc.class_separation(torch.eye(4), MEANS, torch.full((5,), 6)),
    "minority_collapse": lambda: F_nc.minority_collapse(WEIGHT, torch.tensor([100, 100, 100, 3, 3])),
    "nc2_seli": lambda: torch.stack(F_nc.nc2_seli(WEIGHT, MEANS, torch.arange(1, 6))),
    "nc3_bias": lambda: F_nc.nc3_bias(WEIGHT, MEANS, WEIGHT[:, 0]),
    "nci_score": lambda: F_nc.nci_score(FEATURES, WEIGHT, MEANS[0], torch.arange(30) % 5),
    "nearest_mean_score": lambda: F_nc.nearest_mean_score(FEATURES, MEANS),
    "subspace_angles": lambda: F_nc.subspace_angles(MEANS[:2], WEIGHT[:2]),
    "rankme": lambda: F_nc.rankme(SECOND_MOMENT),
    "softmax_expectations": lambda: F_nc.softmax_expectations(LOGITS, torch.arange(30) % 5).products,
    **{name: lambda f=f: f(moments()) for name, f in OF_MOMENTS.items()},
}


@pytest.mark.parametrize("name", AUTOCAST)
def test_autocast_changes_nothing(name: str) -> None:
    expected = AUTOCAST[name]()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = AUTOCAST[name]()
    assert torch.equal(value, expected)
    assert value.dtype == expected.dtype


def test_a_simplex_under_autocast() -> None:
    simplex = torch.eye(8) - 1 / 8
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert F_nc.nc2_etf(simplex) < 1e-6
        assert F_nc.nc3_etf(simplex, simplex) < 1e-6
        assert F_nc.nc2_equiangularity(simplex) < 1e-6


@pytest.mark.parametrize("centre", [torch.zeros(5), torch.tensor(1.0), torch.zeros(1), torch.zeros(5, 4)])
@pytest.mark.parametrize("name", ["nc1", "nc1_quotient", "nc3", "nc3_etf", "wm_cosine", "nc3_uniform_duality"])
def test_a_centre_that_is_no_vector_of_features_raises(name: str, centre: Tensor) -> None:
    first = torch.eye(4) if name.startswith("nc1") else WEIGHT
    with pytest.raises(ValueError, match=r"global_mean must be \(4,\) like a class mean, got"):
        getattr(F_nc, name)(first, MEANS, centre)


@pytest.mark.parametrize("bias", [torch.zeros(4), torch.zeros(1), torch.zeros(5, 1), torch.tensor(0.0)])
def test_a_bias_that_fits_no_weight_raises(bias: Tensor) -> None:
    with pytest.raises(ValueError, match=r"bias must be \(5,\) to go with the weight, got"):
        F_nc.nc4(FEATURES, WEIGHT, MEANS, bias)


@pytest.mark.parametrize("function", [F_nc.quasi_interpolation_errors, F_nc.softmax_expectations])
class TestLabels:
    @pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8, torch.float32, torch.float64, torch.bool])
    def test_of_any_type_that_holds_integers(self, function: Callable[..., Any], dtype: torch.dtype) -> None:
        logits, targets = FEATURES[:6], torch.tensor([0, 1, 1, 0, 1, 0])
        expected, value = function(logits, targets), function(logits, targets.to(dtype))
        if isinstance(value, F_nc.SoftmaxExpectations):
            expected, value = (expected.products,), (value.products,)
        torch.testing.assert_close(value, expected, equal_nan=True)

    @pytest.mark.parametrize("wrong", [0.5, -0.1, float("nan"), float("inf"), 1j])
    def test_others_raise(self, function: Callable[..., Any], wrong: complex) -> None:
        with pytest.raises(ValueError, match="targets must"):
            function(FEATURES[:2], torch.tensor([0, wrong]))
