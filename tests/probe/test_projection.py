"""The random projection of wide features: its error, over seeds and over pairs, against what is stated."""

import math

import pytest
import torch

from nc_callbacks.probe.projection import Projection

SEEDS = 400


def sparse(p):
    x = torch.zeros(1, p, dtype=torch.float64)
    x[0, :3] = torch.tensor([3.0, -1.0, 2.0])
    return x


def dense(p):
    return torch.randn(1, p, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.3


@pytest.mark.parametrize("make", [sparse, dense])
@pytest.mark.parametrize(("p", "m"), [(1000, 64), (257, 256), (4099, 40)])
def test_squares_are_right_in_the_mean_with_the_variance_that_is_stated(make, p, m):
    x = make(p)
    ratios = torch.stack([Projection(p, m, seed)(x).square().sum() / x.square().sum() for seed in range(SEEDS)])
    bound = math.sqrt(2 / m)
    assert abs(float(ratios.mean()) - 1) < 4 * bound / math.sqrt(SEEDS)
    assert float(ratios.std()) < 1.15 * bound
    # The bound is near for a dense vector of many features.
    if make is dense and p > 10 * m:
        assert float(ratios.std()) > 0.8 * bound


def test_it_is_linear_with_orthogonal_rows_of_signs():
    projection = Projection(37, 8)
    matrix = projection(torch.eye(37, dtype=torch.float64)).T
    x = dense(37)
    torch.testing.assert_close(projection(x), x @ matrix.T)
    assert projection.num_outputs == 8
    # A feature has one place, and half a sign, in each of four blocks of two.
    assert torch.equal(matrix.abs().view(4, 2, 37).sum(1), torch.full((4, 37), 0.5, dtype=torch.float64))


def test_distances_of_many_points_are_kept():
    """All 19,900 pairs within √(8 ln N / m), as Johnson and Lindenstrauss have it."""
    n, p, m = 200, 20_000, 1024
    x = torch.randn(n, p, generator=torch.Generator().manual_seed(0))
    y = Projection(p, m)(x)
    ratio = torch.nn.functional.pdist(y.double()) / torch.nn.functional.pdist(x.double())
    assert float((ratio.square() - 1).abs().max()) < math.sqrt(8 * math.log(n) / m)
    assert abs(float(ratio.square().mean()) - 1) < 0.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_precision_is_that_of_the_features(dtype):
    x = dense(3000).to(dtype)
    y = Projection(3000, 64)(x)
    assert y.dtype == dtype
    exact = Projection(3000, 64)(x.double())
    assert float((y.double() - exact).norm() / exact.norm()) < 2 * torch.finfo(dtype).eps


def test_it_is_the_same_each_time():
    x = dense(500)
    assert torch.equal(Projection(500, 32)(x), Projection(500, 32)(x))
    assert not torch.equal(Projection(500, 32)(x), Projection(500, 32, seed=1)(x))


def test_is_the_same_whatever_the_default_device():
    with torch.device("meta"):
        projection = Projection(1000, 64)
    x = dense(1000)
    assert torch.equal(projection(x), Projection(1000, 64)(x))
