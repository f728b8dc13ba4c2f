from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nc_callbacks.functional import _common, centred_mean_weight, nc3, nc3_etf, nc3_uniform_duality, wm_cosine
from tests import reference

METRICS: dict[str, tuple[Callable[..., Tensor], Callable[..., Any]]] = {
    "nc3": (nc3, reference.nc3),
    "nc3_etf": (nc3_etf, reference.nc3_etf),
    "nc3_uniform_duality": (nc3_uniform_duality, reference.nc3_uniform_duality),
    "wm_cosine": (wm_cosine, reference.wm_cosine),
}
ABS = {torch.float32: 2e-6, torch.float64: 1e-13}
"""All values are of order 1."""


def some_layer(k: int, p: int) -> tuple[reference.Array, reference.Array]:
    """A weight that leans towards the centred means, and class means off the origin."""
    rng = np.random.default_rng(k * p)
    means = rng.normal(size=(k, p)) * np.arange(1, k + 1)[:, None] + 2
    return reference.centred(means) + rng.normal(size=(k, p)), means


def tensors(k: int, p: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    weight, means = some_layer(k, p)
    return torch.tensor(weight, dtype=dtype), torch.tensor(means, dtype=dtype)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("dtype", ABS)
@pytest.mark.parametrize(("k", "p"), [(2, 3), (3, 7), (12, 5), (4, 1)])
def test_equals_its_definition(name: str, dtype: torch.dtype, k: int, p: int) -> None:
    function, definition = METRICS[name]
    value = function(*tensors(k, p, dtype))
    assert value.dtype == dtype
    np.testing.assert_allclose(value, definition(*some_layer(k, p)), rtol=0, atol=ABS[dtype])


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(("k", "p"), [(3, 7), (12, 5)])
def test_centred_at_a_given_global_mean(name: str, k: int, p: int) -> None:
    function, definition = METRICS[name]
    weight, means = some_layer(k, p)
    at = np.arange(1, k + 1) / np.arange(1, k + 1).sum() @ means
    value = function(torch.tensor(weight), torch.tensor(means), torch.tensor(at))
    np.testing.assert_allclose(value, definition(weight, means, at), atol=1e-13)
    assert np.abs(value.numpy() - definition(weight, means)).max() > 1e-3


@pytest.mark.parametrize("dtype", ABS)
@pytest.mark.parametrize(("k", "p"), [(2, 1), (4, 3), (10, 64)])
def test_simplex_is_its_own_dual(dtype: torch.dtype, k: int, p: int) -> None:
    simplex = reference.simplex_etf(k, p)
    weight, means = torch.tensor(7 * simplex, dtype=dtype), torch.tensor(3 * simplex + 1, dtype=dtype)
    # nc3 is a square, so its rounding is squared too.
    assert nc3(weight, means).item() == pytest.approx(0, abs=ABS[dtype] ** 2 * 100)
    assert nc3_etf(weight, means).item() == pytest.approx(0, abs=ABS[dtype])
    assert nc3_uniform_duality(weight, means).item() == pytest.approx(0, abs=ABS[dtype] ** 2)
    np.testing.assert_allclose(wm_cosine(weight, means), np.ones(k), atol=ABS[dtype])


def test_opposite_simplex() -> None:
    simplex = torch.tensor(reference.simplex_etf(4, 6))
    np.testing.assert_allclose(wm_cosine(-simplex, simplex), -np.ones(4))
    assert nc3(-simplex, simplex).item() == pytest.approx(4)
    assert nc3_etf(-simplex, simplex).item() == pytest.approx(2)
    assert nc3_uniform_duality(-simplex, simplex).item() == pytest.approx(0)


@pytest.mark.parametrize("k", [2, 3, 10])
def test_orthonormal_weight_and_means(k: int) -> None:
    # μ_c = e_c − 1/k with ‖μ_c‖² = e_cᵀ μ_c = 1 − 1/k, and W Mᵀ = I − 11ᵀ/k, which is E up to scale.
    identity, cosine = torch.eye(k, dtype=torch.float64), (1 - 1 / k) ** 0.5
    np.testing.assert_allclose(wm_cosine(identity, identity), np.full(k, cosine))
    assert nc3(identity, identity).item() == pytest.approx(2 - 2 * cosine)
    assert nc3_etf(identity, identity).item() == pytest.approx(0, abs=1e-14)
    assert nc3_uniform_duality(identity, identity).item() == pytest.approx(0, abs=1e-14)


def test_uniform_duality_is_a_variance_over_classes() -> None:
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert wm_cosine(weight, means).tolist() == [1, 0]
    assert nc3_uniform_duality(weight, means) == 0.25


def test_cosines_never_leave_their_range() -> None:
    vectors = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))
    centred = vectors - vectors.mean(0)
    assert wm_cosine(centred, vectors).max() == 1
    assert wm_cosine(-centred, vectors).min() == -1


@pytest.mark.parametrize("name", METRICS)
@settings(derandomize=True, deadline=None, max_examples=20)
@given(
    scales=st.tuples(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3)),
    offset=st.floats(-10, 10),
    seed=st.integers(0, 1000),
)
def test_invariances(name: str, scales: tuple[float, float], offset: float, seed: int) -> None:
    function, definition = METRICS[name]
    weight, means = some_layer(5, 4)
    turn, order = reference.rotation(4, seed), np.random.default_rng(seed).permutation(5)
    value = function(
        torch.tensor(scales[0] * weight[order] @ turn), torch.tensor(scales[1] * (means[order] @ turn + offset))
    )
    expected = definition(weight, means)
    np.testing.assert_allclose(value, expected[order] if name == "wm_cosine" else expected, rtol=1e-10)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(name: str, dtype: torch.dtype) -> None:
    weight, means = tensors(3, 4, dtype)
    value = METRICS[name][0](weight, means)
    assert value.dtype == torch.float32
    assert torch.equal(value, METRICS[name][0](weight.float(), means.float()))
    assert METRICS[name][0](weight, means.double()).dtype == torch.float64


@pytest.mark.parametrize(("k", "p"), [(40, 3), (40, 50)])
@pytest.mark.parametrize("rows", [1, 3, 4])
def test_nc3_etf_in_blocks(monkeypatch: pytest.MonkeyPatch, k: int, p: int, rows: int) -> None:
    weight, means = (t.requires_grad_() for t in tensors(k, p))
    gradients = torch.autograd.grad(nc3_etf(weight, means), (weight, means))
    monkeypatch.setattr(_common, "BLOCK_BYTES", rows * k * 8)
    with reference.DispatchLog() as log:
        value = nc3_etf(weight, means)
    assert log.largest <= max(rows * k, k * p)
    assert value.item() == pytest.approx(reference.nc3_etf(*some_layer(k, p)), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(value, (weight, means)), gradients)


@pytest.mark.parametrize("function", [nc3, nc3_etf, nc3_uniform_duality, wm_cosine])
@pytest.mark.parametrize(("k", "p"), [(3, 5), (6, 2)])
def test_gradients(function: Callable[..., Tensor], k: int, p: int) -> None:
    weight, means = tensors(k, p)
    assert torch.autograd.gradcheck(function, (weight.requires_grad_(), means.requires_grad_()))


@pytest.mark.parametrize("normalize", ["spectral", "frobenius", "none"])
def test_gradients_of_the_centred_mean_weight(normalize: Any) -> None:
    means = tensors(4, 3)[1].requires_grad_()
    assert torch.autograd.gradcheck(lambda m: centred_mean_weight(m, normalize), means)


@pytest.mark.parametrize("function", [nc3, nc3_etf, nc3_uniform_duality])
def test_nan_gives_nan(function: Callable[..., Tensor]) -> None:
    weight, means = tensors(3, 4)
    broken = weight.clone()
    broken[1, 2] = torch.nan
    assert function(broken, means).isnan()
    assert function(weight, broken).isnan()


def test_nan_in_a_weight_row_is_nan_to_its_class_alone() -> None:
    weight, means = tensors(3, 4)
    weight[1, 2] = torch.nan
    assert wm_cosine(weight, means).isnan().tolist() == [False, True, False]
    assert wm_cosine(means, weight).isnan().all()


@pytest.mark.parametrize("name", METRICS)
def test_wrong_shapes_raise(name: str) -> None:
    function, _ = METRICS[name]
    with pytest.raises(ValueError, match=r"same shape \(k, p\), got \(3, 4\) and \(3, 5\)"):
        function(torch.ones(3, 4), torch.ones(3, 5))
    with pytest.raises(ValueError, match=r"weight must be a matrix .* got shape \(3, 4, 1, 1\)"):
        function(torch.ones(3, 4, 1, 1), torch.ones(3, 4))
    with pytest.raises(ValueError, match="means must be a matrix with a row for each of at least 2 classes"):
        function(torch.ones(3, 4), torch.ones(1, 4))


@pytest.mark.parametrize("dtype", ABS)
@pytest.mark.parametrize(("k", "p"), [(3, 7), (12, 5), (4, 1)])
def test_centred_mean_weight(dtype: torch.dtype, k: int, p: int) -> None:
    means = some_layer(k, p)[1]
    centred = reference.centred(means)
    norms = {"none": 1, "frobenius": np.linalg.norm(centred), "spectral": np.linalg.norm(centred, ord=2)}
    for normalize, norm in norms.items():
        weight = centred_mean_weight(torch.tensor(means, dtype=dtype), normalize)  # type: ignore[arg-type]
        assert weight.dtype == dtype
        np.testing.assert_allclose(weight, centred / norm, rtol=0, atol=10 * ABS[dtype])
    assert torch.equal(
        centred_mean_weight(torch.tensor(means)), centred_mean_weight(torch.tensor(means), normalize="spectral")
    )


def test_centred_mean_weight_of_half_precision_and_of_nan() -> None:
    means = tensors(3, 4, torch.float16)[1]
    assert torch.equal(centred_mean_weight(means), centred_mean_weight(means.float()))
    means[0, 0] = torch.nan
    assert centred_mean_weight(means)[:, 0].isnan().all()


def test_centred_mean_weight_of_wrong_arguments_raises() -> None:
    with pytest.raises(ValueError, match=r"normalize must be .* got 'max'"):
        centred_mean_weight(torch.eye(3), "max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="means must be a matrix"):
        centred_mean_weight(torch.ones(1, 3))
