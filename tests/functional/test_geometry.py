from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nc_callbacks.functional import _common, nc2_equiangularity, nc2_equinorm, nc2_etf
from tests import reference

METRICS: dict[str, tuple[Callable[..., Tensor], Callable[..., float]]] = {
    "equinorm": (nc2_equinorm, reference.nc2_equinorm),
    "equiangularity": (nc2_equiangularity, reference.nc2_equiangularity),
    "equiangularity_signed": (
        partial(nc2_equiangularity, signed=True),
        partial(reference.nc2_equiangularity, signed=True),
    ),
    "etf": (nc2_etf, reference.nc2_etf),
}
ABS = {torch.float32: 1e-6, torch.float64: 1e-13}
"""All values are of order 1."""


def some_vectors(k: int, p: int) -> reference.Array:
    return np.random.default_rng(k * p).normal(size=(k, p)) * np.arange(1, k + 1)[:, None]


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("dtype", ABS)
@pytest.mark.parametrize(("k", "p"), [(2, 3), (3, 7), (12, 5), (4, 1)])
def test_equals_its_definition(name: str, dtype: torch.dtype, k: int, p: int) -> None:
    function, definition = METRICS[name]
    vectors = some_vectors(k, p)
    value = function(torch.tensor(vectors, dtype=dtype))
    assert value.dtype == dtype
    assert value.item() == pytest.approx(definition(vectors), abs=ABS[dtype])


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("dtype", ABS)
@pytest.mark.parametrize(("k", "p"), [(2, 1), (4, 3), (10, 64)])
def test_simplex_is_zero(name: str, dtype: torch.dtype, k: int, p: int) -> None:
    simplex = torch.tensor(7 * reference.simplex_etf(k, p), dtype=dtype)
    assert METRICS[name][0](simplex).item() == pytest.approx(0, abs=ABS[dtype])


@pytest.mark.parametrize("dtype", ABS)
@pytest.mark.parametrize(("k", "p"), [(2, 2), (3, 8), (10, 10)])
def test_orthonormal_vectors(dtype: torch.dtype, k: int, p: int) -> None:
    vectors = torch.tensor(reference.rotation(p)[:k], dtype=dtype)
    assert nc2_equinorm(vectors).item() == pytest.approx(0, abs=ABS[dtype])
    for signed in (False, True):
        assert nc2_equiangularity(vectors, signed).item() == pytest.approx(1 / (k - 1), abs=ABS[dtype])
    # ‖I/√k − E‖² = 1 + 1 − 2 tr(E)/√k with tr E = (k − 1)/√(k−1).
    assert nc2_etf(vectors).item() == pytest.approx((2 - 2 * ((k - 1) / k) ** 0.5) ** 0.5, abs=ABS[dtype])


def test_vectors_that_all_point_one_way() -> None:
    vectors = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    assert nc2_equinorm(vectors).item() == pytest.approx(2**0.5 / 2)
    assert nc2_equiangularity(vectors).item() == pytest.approx(2)
    # The normed Gram matrix of equal vectors is 11ᵀ/k, orthogonal to E.
    assert nc2_etf(torch.ones(5, 3, dtype=torch.float64)).item() == pytest.approx(2**0.5)


def test_signed_deviations_cancel() -> None:
    # Cosines 1, 0 and 0 against −1/2: deviations 3/2, 1/2, 1/2. Cosines 1, −1 and −1: 3/2, −1/2, −1/2.
    vectors = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    assert nc2_equiangularity(vectors).item() == pytest.approx(5 / 6)
    assert nc2_equiangularity(vectors, signed=True).item() == pytest.approx(5 / 6)
    vectors[2] = torch.tensor([-1.0, 0.0])
    assert nc2_equiangularity(vectors).item() == pytest.approx(5 / 6)
    assert nc2_equiangularity(vectors, signed=True).item() == pytest.approx(1 / 6)


@pytest.mark.parametrize("name", METRICS)
@settings(derandomize=True, deadline=None, max_examples=20)
@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 1000))
def test_invariances(name: str, scale: float, seed: int) -> None:
    function, definition = METRICS[name]
    vectors = some_vectors(5, 4)
    moved = scale * np.random.default_rng(seed).permutation(vectors) @ reference.rotation(4, seed)
    assert function(torch.tensor(moved)).item() == pytest.approx(definition(vectors), rel=1e-12)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(name: str, dtype: torch.dtype) -> None:
    vectors = torch.tensor(some_vectors(3, 4)).to(dtype)
    value = METRICS[name][0](vectors)
    assert value.dtype == torch.float32
    assert value == METRICS[name][0](vectors.float())


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(("k", "p"), [(40, 3), (40, 50)])
@pytest.mark.parametrize("rows", [1, 3, 4])
def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, name: str, k: int, p: int, rows: int) -> None:
    function, definition = METRICS[name]
    vectors = torch.tensor(some_vectors(k, p), requires_grad=True)
    (gradient,) = torch.autograd.grad(function(vectors), vectors)
    monkeypatch.setattr(_common, "BLOCK_BYTES", rows * k * 8)
    with reference.DispatchLog() as log:
        value = function(vectors)
    assert log.largest <= max(rows * k, k * p)
    assert value.item() == pytest.approx(definition(vectors.detach().numpy()), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(value, vectors)[0], gradient)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(("k", "p"), [(3, 5), (6, 2)])
def test_gradients(name: str, k: int, p: int) -> None:
    assert torch.autograd.gradcheck(METRICS[name][0], torch.tensor(some_vectors(k, p), requires_grad=True))


@pytest.mark.parametrize("name", METRICS)
def test_nan_gives_nan(name: str) -> None:
    vectors = torch.tensor(some_vectors(3, 4))
    vectors[1, 2] = torch.nan
    assert METRICS[name][0](vectors).isnan()


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("vectors", [torch.ones(1, 3), torch.ones(3), torch.ones(2, 3, 1)])
def test_what_is_no_matrix_raises(name: str, vectors: Tensor) -> None:
    with pytest.raises(ValueError, match="vectors must be a matrix with a row for each of at least 2 classes"):
        METRICS[name][0](vectors)
