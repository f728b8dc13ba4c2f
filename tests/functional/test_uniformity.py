from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nc_callbacks.functional import _common, nc2_uniformity, nc5
from tests import reference_more as reference
from tests.reference import Array, DispatchLog, rotation, simplex_etf

ABS = {torch.float32: 1e-4, torch.float64: 1e-12}
"""All values are of order 1. A squared distance is a difference of numbers of order 1: near vectors lose digits."""
SHAPES = [(2, 3), (3, 7), (12, 5), (6, 2)]


def some_vectors(k: int, p: int) -> Array:
    return np.random.default_rng(k * p).normal(size=(k, p)) * np.arange(1, k + 1)[:, None]


class TestUniformity:
    @pytest.mark.parametrize("dtype", ABS)
    @pytest.mark.parametrize(("k", "p"), SHAPES)
    def test_equals_its_definition(self, k: int, p: int, dtype: torch.dtype) -> None:
        vectors = some_vectors(k, p)
        values = nc2_uniformity(torch.tensor(vectors, dtype=dtype))
        assert {value.dtype for value in values} == {dtype}
        assert [v.item() for v in values] == pytest.approx(reference.nc2_uniformity(vectors), abs=ABS[dtype])

    @pytest.mark.parametrize("dtype", ABS)
    @pytest.mark.parametrize(("k", "p"), [(2, 1), (4, 3), (10, 64)])
    def test_simplex(self, k: int, p: int, dtype: torch.dtype) -> None:
        mean, variance = nc2_uniformity(torch.tensor(7 * simplex_etf(k, p), dtype=dtype))
        # Unit vectors of cosine −1/(k−1): their squared distance is 2k/(k−1).
        assert mean.item() == pytest.approx(-np.log(2 * k / (k - 1)) / 2, abs=ABS[dtype])
        assert variance.item() == pytest.approx(0, abs=ABS[dtype])

    @pytest.mark.parametrize("k", [4, 10])
    def test_simplex_is_the_least_mean(self, k: int) -> None:
        simplex = simplex_etf(k, k)
        least = nc2_uniformity(torch.tensor(simplex))[0]
        for seed in range(5):
            moved = simplex + 0.1 * np.random.default_rng(seed).normal(size=(k, k))
            assert nc2_uniformity(torch.tensor(moved))[0] > least + 1e-4

    def test_orthogonal_and_opposite(self) -> None:
        # Distances 2 (once) and √2 (four times), and 2 again: logs −log 2 twice and −½ log 2 four times.
        mean, variance = nc2_uniformity(torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.0, 3.0], [0.0, -4.0]]))
        assert mean.item() == pytest.approx(-2 / 3 * np.log(2))
        assert variance.item() == pytest.approx(np.log(2) ** 2 / 18, rel=1e-5)

    @settings(derandomize=True, deadline=None, max_examples=20)
    @given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 1000))
    def test_invariances(self, scale: float, seed: int) -> None:
        vectors = some_vectors(5, 4)
        rng = np.random.default_rng(seed)
        moved = scale * rng.uniform(0.5, 2, size=(5, 1)) * rng.permutation(vectors) @ rotation(4, seed)
        values = [v.item() for v in nc2_uniformity(torch.tensor(moved))]
        assert values == pytest.approx(reference.nc2_uniformity(vectors), rel=1e-11)

    @pytest.mark.parametrize(("k", "p"), [(20, 4), (20, 30)])
    @pytest.mark.parametrize("rows", [1, 3, 7])
    def test_blocks_change_nothing(self, monkeypatch: pytest.MonkeyPatch, k: int, p: int, rows: int) -> None:
        vectors = torch.tensor(some_vectors(k, p))
        monkeypatch.setattr(_common, "BLOCK_BYTES", rows * k * 8)
        with DispatchLog() as log:
            values = nc2_uniformity(vectors)
        assert log.largest <= max(rows * k, k * p)
        assert [v.item() for v in values] == pytest.approx(reference.nc2_uniformity(vectors.numpy()), rel=1e-11)

    @pytest.mark.parametrize(("k", "p"), [(3, 5), (6, 2)])
    def test_gradients(self, k: int, p: int) -> None:
        assert torch.autograd.gradcheck(nc2_uniformity, torch.tensor(some_vectors(k, p), requires_grad=True))

    def test_coinciding_vectors_are_infinitely_bad(self) -> None:
        mean, variance = nc2_uniformity(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]))
        assert mean == torch.inf
        assert not variance.isfinite()

    def test_any_coinciding_vectors_are_infinitely_bad(self) -> None:
        for seed in range(50):
            vectors = torch.tensor(np.random.default_rng(seed).normal(size=(3, 5)))
            vectors[1] = vectors[0]
            assert nc2_uniformity(vectors)[0] == torch.inf

    @pytest.mark.parametrize("distance", [1e-4, 1e-5])
    def test_near_vectors_in_float32(self, distance: float) -> None:
        vectors = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0 + distance]])
        # Rounding the entries of the unit vectors moves the distance by 1e-7, 1 % of 1e-5.
        expected = reference.nc2_uniformity(vectors.double().numpy())[0]
        assert nc2_uniformity(vectors)[0].item() == pytest.approx(expected, abs=0.05)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_widened(self, dtype: torch.dtype) -> None:
        vectors = torch.tensor(some_vectors(3, 4)).to(dtype)
        assert nc2_uniformity(vectors) == nc2_uniformity(vectors.float())
        assert nc2_uniformity(vectors)[0].dtype == torch.float32

    def test_nan_gives_nan(self) -> None:
        vectors = torch.tensor(some_vectors(3, 4))
        vectors[1, 2] = torch.nan
        assert all(value.isnan() for value in nc2_uniformity(vectors))

    @pytest.mark.parametrize("vectors", [torch.ones(1, 3), torch.ones(3), torch.ones(2, 3, 1)])
    def test_what_is_no_matrix_raises(self, vectors: Tensor) -> None:
        with pytest.raises(ValueError, match="vectors must be a matrix with a row for each of at least 2 classes"):
            nc2_uniformity(vectors)


class TestNC5:
    @pytest.mark.parametrize("dtype", ABS)
    @pytest.mark.parametrize(("k", "p"), [*SHAPES, (4, 1)])
    def test_equals_its_definition(self, k: int, p: int, dtype: torch.dtype) -> None:
        means, ood = some_vectors(k, p), np.random.default_rng(1).normal(size=p)
        value = nc5(torch.tensor(means, dtype=dtype), torch.tensor(ood, dtype=dtype))
        assert value.dtype == dtype
        assert value.item() == pytest.approx(reference.nc5(means, ood), abs=ABS[dtype])

    def test_means_are_not_centred(self) -> None:
        # Centred, these means would be ±(1, 0), with cosine ±1.
        assert nc5(torch.tensor([[1.0, 1.0], [3.0, 1.0]]), torch.tensor([0.0, 1.0])).item() == pytest.approx(
            (2**-0.5 + 10**-0.5) / 2
        )

    @pytest.mark.parametrize(("k", "p"), [(2, 3), (5, 9)])
    def test_orthogonal_is_zero(self, k: int, p: int) -> None:
        directions = rotation(p)
        means = np.random.default_rng(0).normal(size=(k, k)) @ directions[:k]
        assert nc5(torch.tensor(means), torch.tensor(directions[k])).item() == pytest.approx(0, abs=1e-14)

    @pytest.mark.parametrize("factor", [-3.0, 0.01])
    def test_parallel_is_one(self, factor: float) -> None:
        ood = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
        means = torch.tensor([1.0, -2.0, 5.0], dtype=torch.float64)[:, None] * ood
        assert nc5(means, factor * ood).item() == pytest.approx(1, abs=1e-14)

    def test_gradients(self) -> None:
        means = torch.tensor(some_vectors(4, 3), requires_grad=True)
        ood = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(nc5, (means, ood))

    def test_half_precision_is_widened(self) -> None:
        means, ood = torch.tensor(some_vectors(3, 4)).half(), torch.tensor([1.0, -1.0, 0.5, 2.0]).half()
        assert nc5(means, ood).dtype == torch.float32
        assert nc5(means, ood) == nc5(means.float(), ood.float())

    @pytest.mark.parametrize("which", [0, 1])
    def test_nan_gives_nan(self, which: int) -> None:
        arguments = [torch.tensor(some_vectors(3, 4)), torch.ones(4)]
        arguments[which].view(-1)[2] = torch.nan
        assert nc5(*arguments).isnan()

    @pytest.mark.parametrize("ood", [torch.ones(2), torch.ones(1), torch.ones(1, 3), torch.tensor(1.0)])
    def test_shape_of_the_ood_mean(self, ood: Tensor) -> None:
        with pytest.raises(ValueError, match=r"ood_mean must be \(3,\) like a class mean"):
            nc5(torch.ones(2, 3), ood)

    @pytest.mark.parametrize("means", [torch.ones(1, 3), torch.ones(3)])
    def test_what_is_no_matrix_raises(self, means: Tensor) -> None:
        with pytest.raises(ValueError, match="means must be a matrix with a row for each of at least 2 classes"):
            nc5(means, torch.ones(3))
