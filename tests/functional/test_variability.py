from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nc_callbacks.functional import _common, nc1, nc1_cdnv, nc1_quotient
from tests import reference

SHAPES = [(2, 3), (3, 7), (12, 5), (4, 1)]
REL = {torch.float32: 1e-4, torch.float64: 1e-10}
"""Rounding times the condition of the class means."""

METRICS: dict[str, tuple[Callable[..., Tensor], Callable[..., float]]] = {
    "nc1": (nc1, reference.nc1),
    "nc1_quotient": (nc1_quotient, reference.nc1_quotient),
    "nc1_cdnv": (nc1_cdnv, reference.nc1_cdnv),
}


def unbalanced(k: int, p: int) -> reference.Moments:
    features, targets = reference.gaussian_classes([2 + 3 * c for c in range(k)], p, offset=2)
    return reference.moments(features, targets, k)


def spread_of(name: str, moments: reference.Moments) -> Any:
    return moments.traces if name == "nc1_cdnv" else moments.within


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("dtype", REL)
@pytest.mark.parametrize(("k", "p"), SHAPES)
def test_equals_its_definition(name: str, dtype: torch.dtype, k: int, p: int) -> None:
    function, definition = METRICS[name]
    moments = unbalanced(k, p)
    spread = spread_of(name, moments)
    value = function(torch.tensor(spread, dtype=dtype), torch.tensor(moments.means, dtype=dtype))
    assert value.dtype == dtype
    assert value.item() == pytest.approx(definition(spread, moments.means), rel=REL[dtype])


@pytest.mark.parametrize("name", ["nc1", "nc1_quotient"])
@pytest.mark.parametrize(("k", "p"), SHAPES)
def test_centred_at_a_given_global_mean(name: str, k: int, p: int) -> None:
    function, definition = METRICS[name]
    moments = unbalanced(k, p)
    at = moments.counts / moments.counts.sum() @ moments.means
    value = function(torch.tensor(moments.within), torch.tensor(moments.means), torch.tensor(at)).item()
    assert value == pytest.approx(definition(moments.within, moments.means, at), rel=1e-10)
    assert value != pytest.approx(definition(moments.within, moments.means), rel=1e-3)


def test_quotient_takes_the_trace_alone() -> None:
    moments = unbalanced(3, 7)
    within, means = torch.tensor(moments.within), torch.tensor(moments.means)
    assert nc1_quotient(within.trace(), means) == nc1_quotient(within, means)


@pytest.mark.parametrize("dtype", REL)
@pytest.mark.parametrize(("k", "p"), [(2, 3), (5, 5), (10, 30)])
def test_isotropic_spread_around_orthogonal_means(dtype: torch.dtype, k: int, p: int) -> None:
    # Means of norm a: Σ_B has the eigenvalue a²/k, k − 1 times, and ‖m_c − m_c'‖² = 2a².
    a, variance = 3.0, 0.04
    means = torch.tensor(a * reference.rotation(p)[:k] + 5, dtype=dtype)
    within, traces = variance * torch.eye(p, dtype=dtype), torch.full((k,), p * variance, dtype=dtype)
    assert nc1(within, means).item() == pytest.approx(variance * (k - 1) / a**2, rel=REL[dtype])
    assert nc1_quotient(within, means).item() == pytest.approx(p * variance * k / (k - 1) / a**2, rel=REL[dtype])
    assert nc1_cdnv(traces, means).item() == pytest.approx(p * variance / (2 * a**2), rel=REL[dtype])


@pytest.mark.parametrize("dtype", REL)
@pytest.mark.parametrize(("k", "p"), [(2, 1), (4, 3), (10, 30)])
def test_isotropic_spread_around_a_simplex(dtype: torch.dtype, k: int, p: int) -> None:
    # Means of norm a: Σ_B has the eigenvalue a²/(k−1), k − 1 times, and ‖m_c − m_c'‖² = 2a² k/(k−1).
    a, variance = 3.0, 0.04
    means = torch.tensor(a * reference.simplex_etf(k, p) + 5, dtype=dtype)
    within, traces = variance * torch.eye(p, dtype=dtype), torch.full((k,), p * variance, dtype=dtype)
    assert nc1(within, means).item() == pytest.approx(variance * (k - 1) ** 2 / (k * a**2), rel=REL[dtype])
    assert nc1_quotient(within, means).item() == pytest.approx(p * variance / a**2, rel=REL[dtype])
    assert nc1_cdnv(traces, means).item() == pytest.approx(p * variance * (k - 1) / (2 * k * a**2), rel=REL[dtype])


@pytest.mark.parametrize("name", METRICS)
@settings(derandomize=True, deadline=None, max_examples=20)
@given(scale=st.floats(1e-3, 1e3), offset=st.floats(-10, 10), seed=st.integers(0, 1000))
def test_invariances(name: str, scale: float, offset: float, seed: int) -> None:
    moments = unbalanced(4, 6)
    turn, order = reference.rotation(6, seed), np.random.default_rng(seed).permutation(4)
    means = scale * moments.means[order] @ turn.T + scale * offset
    spread = scale**2 * (moments.traces[order] if name == "nc1_cdnv" else turn @ moments.within @ turn.T)
    function, definition = METRICS[name]
    value = function(torch.tensor(spread), torch.tensor(means)).item()
    assert value == pytest.approx(definition(spread_of(name, moments), moments.means), rel=1e-9)


@pytest.mark.parametrize("name", METRICS)
def test_common_offset_of_float32_means_costs_no_digits(name: str) -> None:
    function, definition = METRICS[name]
    moments = unbalanced(5, 8)
    spread, means = spread_of(name, moments), torch.tensor(moments.means + 1000).float()
    value = function(torch.tensor(spread).float(), means).item()
    assert value == pytest.approx(definition(spread, means.double().numpy()), rel=1e-5)


@pytest.mark.filterwarnings("ignore:nc1 is known to")
@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(name: str, dtype: torch.dtype) -> None:
    moments = unbalanced(3, 4)
    spread, means = torch.tensor(spread_of(name, moments)).to(dtype), torch.tensor(moments.means).to(dtype)
    function, _ = METRICS[name]
    value = function(spread, means)
    assert value.dtype == torch.float32
    assert value == function(spread.float(), means.float())
    assert function(spread, means.double()).dtype == torch.float64


@pytest.mark.parametrize("dtype", REL)
def test_coinciding_means(dtype: torch.dtype) -> None:
    means = torch.full((3, 4), 3.7, dtype=dtype)
    for function, spread in ((nc1, torch.eye(4)), (nc1_quotient, torch.eye(4)), (nc1_cdnv, torch.ones(3))):
        assert function(spread.to(dtype), means) == torch.inf
        assert function(torch.zeros_like(spread, dtype=dtype), means).isnan()


def test_one_pair_of_coinciding_means_is_infinite_to_cdnv() -> None:
    means = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert nc1_cdnv(torch.ones(3), means) == torch.inf


@pytest.mark.filterwarnings("ignore:nc1 is known to no digits")
def test_nc1_is_never_negative() -> None:
    # Rounding may leave a Σ_W of collapsed features slightly indefinite.
    assert nc1(-1e-12 * torch.eye(3), torch.eye(3)) == 0


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nonfinite_input_gives_nan(name: str, value: float) -> None:
    moments = unbalanced(3, 4)
    spread, means = torch.tensor(spread_of(name, moments)), torch.tensor(moments.means)
    function, _ = METRICS[name]
    broken = means.clone()
    broken[1, 2] = value
    assert function(spread, broken).isnan()
    spread[0] = value
    # An infinite variance over finite distances is infinite, but NC1 mixes signs.
    assert function(spread, means).isnan() or (name != "nc1" and function(spread, means) == value)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(("k", "p"), [(3, 5), (6, 2)])
def test_gradients(name: str, k: int, p: int) -> None:
    moments = unbalanced(k, p)
    spread = torch.tensor(spread_of(name, moments), requires_grad=True)
    assert torch.autograd.gradcheck(METRICS[name][0], (spread, torch.tensor(moments.means, requires_grad=True)))


def test_gradient_of_nc1_at_a_simplex() -> None:
    # All singular values of the means are equal there, where the derivative of an SVD is not defined.
    simplex, spread = reference.simplex_etf(4, 6), unbalanced(4, 6).within
    within, means = torch.tensor(spread, requires_grad=True), torch.tensor(simplex, requires_grad=True)
    nc1(within, means).backward()
    assert within.grad is not None
    assert means.grad is not None
    np.testing.assert_allclose(within.grad, reference.between_inverse(simplex) / 4, atol=1e-12)
    direction = np.random.default_rng(0).normal(size=simplex.shape)
    step = 1e-5 * direction
    slope = (reference.nc1(spread, simplex + step) - reference.nc1(spread, simplex - step)) / 2e-5
    assert (means.grad.numpy() * direction).sum() == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_cdnv_in_blocks(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    features, targets = reference.gaussian_classes([3] * 40, 3)
    moments = reference.moments(features, targets, 40)
    traces, means = torch.tensor(moments.traces, requires_grad=True), torch.tensor(moments.means, requires_grad=True)
    whole = torch.autograd.grad(nc1_cdnv(traces, means), (traces, means))
    monkeypatch.setattr(_common, "BLOCK_BYTES", rows * 40 * 8)
    with reference.DispatchLog() as log:
        value = nc1_cdnv(traces, means)
    assert log.largest <= rows * 40 + 3 * 40
    assert value.item() == pytest.approx(reference.nc1_cdnv(moments.traces, moments.means), rel=1e-10)
    torch.testing.assert_close(torch.autograd.grad(value, (traces, means)), whole)


@pytest.mark.parametrize("function", [nc1, nc1_quotient])
@pytest.mark.parametrize("means", [torch.ones(1, 3), torch.ones(3), torch.ones(2, 3, 1)])
def test_means_that_are_no_matrix_raise(function: Callable[..., Tensor], means: Tensor) -> None:
    with pytest.raises(ValueError, match="means must be a matrix with a row for each of at least 2 classes"):
        function(torch.eye(3), means)


def test_wrong_shapes_raise() -> None:
    with pytest.raises(ValueError, match=r"within must be \(3, 3\) .* got \(2, 2\)"):
        nc1(torch.eye(2), torch.ones(4, 3))
    with pytest.raises(ValueError, match=r"within must be \(3, 3\) .* got \(\)"):
        nc1(torch.tensor(1.0), torch.ones(4, 3))
    with pytest.raises(ValueError, match=r"traces must be \(4,\) .* got \(3,\)"):
        nc1_cdnv(torch.ones(3), torch.ones(4, 3))
    with pytest.raises(ValueError, match="means must be a matrix"):
        nc1_cdnv(torch.ones(1), torch.ones(1, 3))


@pytest.mark.parametrize("within", [torch.eye(2), torch.ones(3), torch.ones(3, 2)])
def test_quotient_of_wrong_shapes_raises(within: Tensor) -> None:
    with pytest.raises(ValueError, match="within must be"):
        nc1_quotient(within, torch.eye(3))


def test_gradient_of_the_global_mean_alone_with_many_classes() -> None:
    means = torch.randn(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    within = torch.eye(6, dtype=torch.float64)
    centre = means.mean(0).requires_grad_()
    assert torch.autograd.gradcheck(lambda c: nc1(within, means, c), centre)
