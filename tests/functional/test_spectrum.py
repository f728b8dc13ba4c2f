from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from nc_callbacks.functional import effective_rank, eigenvalues, entropy_rank, explained_variance
from nc_callbacks.statistics import ClassStatistics
from tests import reference_more
from tests.reference import Array, gaussian_classes, rotation, simplex_etf

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
"""Relative to the largest eigenvalue (or the rank): some rounding errors of the matrix, times p."""


def activations(name: str) -> Array:
    rng = np.random.default_rng(0)
    return {
        "n > p": lambda: rng.normal(size=(50, 7)) * np.arange(1, 8) + 1,
        "p > n": lambda: rng.normal(size=(6, 20)) + 1,
        "rank 3": lambda: rng.normal(size=(40, 3)) @ rng.normal(size=(3, 9)),
        "one feature": lambda: rng.normal(size=(10, 1)),
        "wide range": lambda: rng.normal(size=(30, 5)) * 10.0 ** -np.arange(5) @ rotation(5),
    }[name]()


ACTIVATIONS = ["n > p", "p > n", "rank 3", "one feature", "wide range"]


def second_moment(x: Array, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(x.T @ x / len(x), dtype=dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_equals_the_svd_of_the_activations(name: str, dtype: torch.dtype) -> None:
    x = activations(name)
    expected = reference_more.eigenvalues(x)
    matrix = second_moment(x, dtype)
    values, shares = eigenvalues(matrix), explained_variance(matrix)
    assert values.dtype == shares.dtype == dtype
    assert values.shape == shares.shape == (x.shape[1],)
    assert (values >= 0).all()
    assert (values.diff() <= 0).all()
    np.testing.assert_allclose(values.numpy(), expected, rtol=0, atol=TOLERANCE[dtype] * expected[0])
    np.testing.assert_allclose(shares.numpy(), expected / expected.sum(), rtol=0, atol=TOLERANCE[dtype])
    assert shares.sum().item() == pytest.approx(1, abs=TOLERANCE[dtype])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_entropy_of_the_svd(name: str) -> None:
    expected = reference_more.eigenvalues(activations(name))
    shares = expected / expected.sum()
    rank = reference_more.entropy_rank(shares)
    assert entropy_rank(torch.tensor(shares)).item() == pytest.approx(rank, rel=1e-13)
    # An eigenvalue that is 0 may come out as 1e-17 of the largest, and −q log q is 4e-16 there.
    assert effective_rank(second_moment(activations(name))).item() == pytest.approx(rank, rel=1e-11)


@pytest.mark.parametrize("batch_size", [4, 100])
def test_of_streamed_statistics(batch_size: int) -> None:
    features, targets = gaussian_classes([20, 10, 5], 6, offset=2)
    statistics = ClassStatistics(3)
    for x, y in zip(torch.tensor(features).split(batch_size), torch.tensor(targets).split(batch_size), strict=True):
        statistics.update(x, y)
    values = eigenvalues(statistics.compute().second_moment)
    np.testing.assert_allclose(values.numpy(), reference_more.eigenvalues(features), rtol=1e-11)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("p", [1, 2, 9])
def test_identity_has_full_rank(p: int, dtype: torch.dtype) -> None:
    matrix = 5 * torch.eye(p, dtype=dtype)
    assert effective_rank(matrix).item() == pytest.approx(p, rel=TOLERANCE[dtype])
    assert explained_variance(matrix).tolist() == pytest.approx([1 / p] * p, rel=TOLERANCE[dtype])


@pytest.mark.parametrize("p", [1, 2, 9])
def test_rank_one(p: int) -> None:
    direction = torch.tensor(np.random.default_rng(p).normal(size=p))
    matrix = torch.outer(direction, direction)
    assert effective_rank(matrix).item() == pytest.approx(1, abs=1e-12)
    assert eigenvalues(matrix)[0].item() == pytest.approx(direction.square().sum().item(), rel=1e-13)


@pytest.mark.parametrize(("k", "p"), [(2, 3), (4, 3), (10, 32)])
def test_collapsed_centred_features(k: int, p: int) -> None:
    matrix = second_moment(3 * simplex_etf(k, p))
    assert effective_rank(matrix).item() == pytest.approx(k - 1, rel=1e-11)
    shares = explained_variance(matrix)
    assert shares[: k - 1].tolist() == pytest.approx([1 / (k - 1)] * (k - 1), rel=1e-12)
    assert shares[k - 1 :].sum().item() == pytest.approx(0, abs=1e-14)


def test_scale_changes_no_share() -> None:
    matrix = second_moment(activations("n > p"))
    torch.testing.assert_close(explained_variance(1e6 * matrix), explained_variance(matrix))
    assert effective_rank(1e6 * matrix).item() == pytest.approx(effective_rank(matrix).item(), rel=1e-12)


def test_entropy_rank_of_known_shares() -> None:
    assert entropy_rank(torch.tensor([1.0, 0.0, 0.0])).item() == 1
    # Entropy ½ log 2 + 2 · ¼ log 4 = (3/2) log 2.
    assert entropy_rank(torch.tensor([0.5, 0.25, 0.25, 0.0])).item() == pytest.approx(2**1.5)


def test_rounding_below_zero_is_cut() -> None:
    assert eigenvalues(torch.diag(torch.tensor([1.0, -1e-7]))).tolist() == [1, 0]


@pytest.mark.parametrize("function", [eigenvalues, explained_variance, effective_rank])
def test_gradients(function: Callable[[Tensor], Tensor]) -> None:
    matrix = second_moment(activations("n > p")).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: function((m + m.T) / 2), matrix)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(dtype: torch.dtype) -> None:
    matrix = second_moment(activations("n > p")).to(dtype)
    assert eigenvalues(matrix).dtype == torch.float32
    assert torch.equal(eigenvalues(matrix), eigenvalues(matrix.float()))


@pytest.mark.parametrize("function", [eigenvalues, explained_variance, effective_rank])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_gives_nan(function: Callable[[Tensor], Tensor], value: float) -> None:
    matrix = torch.eye(3)
    matrix[1, 1] = value
    assert function(matrix).isnan().all()
    assert entropy_rank(torch.tensor([0.5, torch.nan])).isnan()


@pytest.mark.parametrize("function", [eigenvalues, explained_variance, effective_rank])
@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 3, 3)])
def test_what_is_not_square_raises(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="second_moment must be a square matrix"):
        function(torch.ones(shape))
