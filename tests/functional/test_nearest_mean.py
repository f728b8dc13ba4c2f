from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nc_callbacks.functional import nc4, nearest_mean
from nc_callbacks.functional.nearest_mean import NearestMean
from tests import reference

SHAPES = [(2, 3), (3, 7), (12, 5), (4, 1)]


def some_layer(k: int, p: int, offset: float = 0.0) -> tuple[reference.Array, ...]:
    """Features whose classes overlap, a weight, class means and a bias."""
    features, targets = reference.gaussian_classes([3 + 5 * c for c in range(k)], p, spread=2, offset=offset)
    rng = np.random.default_rng(1)
    means = reference.moments(features, targets, k).means
    return features, reference.centred(means) + rng.normal(size=(k, p)) / 2, means, 2 * rng.normal(size=k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("k", "p"), SHAPES)
def test_nearest_mean_equals_its_definition(dtype: torch.dtype, k: int, p: int) -> None:
    features, _, means, _ = some_layer(k, p)
    nearest = nearest_mean(torch.tensor(features, dtype=dtype), torch.tensor(means, dtype=dtype))
    assert nearest.dtype == torch.long
    assert len(nearest.unique()) == k
    np.testing.assert_array_equal(nearest, reference.nearest_mean(features, means))


@pytest.mark.parametrize("means_dtype", [torch.float32, torch.float64])
def test_common_offset_costs_no_digits(means_dtype: torch.dtype) -> None:
    features, _, means, _ = some_layer(6, 8, offset=1e4)
    x, m = torch.tensor(features).float(), torch.tensor(means).to(means_dtype)
    expected = reference.nearest_mean(x.double().numpy(), m.double().numpy())
    np.testing.assert_array_equal(nearest_mean(x, m), expected)


def test_longer_means_are_no_nearer() -> None:
    means = torch.tensor([[1.0, 0.0], [10.0, 0.0], [0.0, 100.0]])
    features = torch.tensor([[5.4, 0.0], [5.6, 0.0], [1.0, 45.0], [0.0, 60.0]])
    assert nearest_mean(features, means).tolist() == [0, 1, 0, 2]


@settings(derandomize=True, deadline=None, max_examples=20)
@given(scale=st.floats(1e-3, 1e3), offset=st.floats(-10, 10), seed=st.integers(0, 1000))
def test_nearest_mean_moves_with_the_features(scale: float, offset: float, seed: int) -> None:
    features, _, means, _ = some_layer(4, 5)
    turn, order = reference.rotation(5, seed), np.random.default_rng(seed).permutation(4)
    nearest = nearest_mean(
        torch.tensor(scale * (features @ turn + offset)), torch.tensor(scale * (means[order] @ turn + offset))
    )
    np.testing.assert_array_equal(order[nearest], reference.nearest_mean(features, means))


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("k", "p"), SHAPES)
def test_nc4_equals_its_definition(dtype: torch.dtype, k: int, p: int, with_bias: bool) -> None:
    features, weight, means, bias = some_layer(k, p)
    arguments = (features, weight, means, bias) if with_bias else (features, weight, means)
    value = nc4(*(torch.tensor(a, dtype=dtype) for a in arguments))
    expected = reference.nc4(*arguments)
    assert 0 < expected < 1
    assert value.dtype == dtype
    assert value.item() == pytest.approx(expected, rel=1e-6)


def test_nc4_counts_mismatches() -> None:
    # The nearest means are 0, 0, 1, 1; the opposite weight gets all of them wrong, a large bias those of class 1.
    features = torch.tensor([[2.0, 0.0], [1.0, 0.5], [0.0, 1.0], [0.2, 0.9]])
    means = torch.eye(2)
    assert nc4(features, means, means) == 0
    assert nc4(features, -means, means) == 1
    assert nc4(features, means, means, bias=torch.tensor([9.0, 0.0])) == 0.5
    assert nc4(features, means, means, bias=torch.zeros(2)) == 0


def test_nearest_mean_classifier_written_as_a_linear_one_never_mismatches() -> None:
    features, _, means, _ = some_layer(5, 6)
    m = torch.tensor(means)
    assert nc4(torch.tensor(features), m, m, bias=-m.square().sum(1) / 2) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(dtype: torch.dtype) -> None:
    features, weight, means, bias = (torch.tensor(a).to(dtype) for a in some_layer(12, 5))
    # The distances of many samples differ by less than the rounding of bfloat16.
    expected = reference.nearest_mean(features.double().numpy(), means.double().numpy())
    np.testing.assert_array_equal(nearest_mean(features, means), expected)
    value = nc4(features, weight, means, bias)
    assert value.dtype == torch.float32
    assert value == nc4(features.float(), weight.float(), means.float(), bias.float())


def test_means_and_weight_of_another_precision() -> None:
    features, weight, means, bias = (torch.tensor(a) for a in some_layer(4, 5))
    assert torch.equal(nearest_mean(features.float(), means), nearest_mean(features, means.float()))
    assert nc4(features.float(), weight.float(), means, bias).dtype == torch.float32


@pytest.mark.parametrize("position", range(3))
def test_nc4_of_nan_is_nan(position: int) -> None:
    arguments = [torch.tensor(a) for a in some_layer(4, 5)[:3]]
    arguments[position][:] = torch.nan
    assert nc4(*arguments).isnan()


@pytest.mark.parametrize("features", [torch.ones(5, 2), torch.ones(3), torch.ones(5, 3, 1)])
def test_features_of_wrong_shape_raise(features: Tensor) -> None:
    with pytest.raises(ValueError, match=r"features must be \(n, 3\) to go with means of shape \(2, 3\)"):
        nearest_mean(features, torch.ones(2, 3))


@pytest.mark.parametrize("features", [torch.ones(5, 2), torch.ones(5, 3, 1)])
def test_features_of_wrong_shape_raise_in_nc4(features: Tensor) -> None:
    with pytest.raises(ValueError, match=r"features must be \(n, 3\)"):
        nc4(features, torch.ones(2, 3), torch.ones(2, 3))


def test_wrong_shapes_raise() -> None:
    with pytest.raises(ValueError, match=r"weight and means must have the same shape .* \(2, 4\) and \(2, 3\)"):
        nc4(torch.ones(5, 3), torch.ones(2, 4), torch.ones(2, 3))
    with pytest.raises(ValueError, match="means must be a matrix with a row for each of at least 2 classes"):
        nc4(torch.ones(5, 3), torch.ones(1, 3), torch.ones(1, 3))
    with pytest.raises(ValueError, match="means must be a matrix"):
        nearest_mean(torch.ones(5, 3), torch.ones(3))


def test_nc4_of_the_next_batch_knows_what_was_written_since() -> None:
    features, weight, means, bias = (torch.tensor(a) for a in some_layer(6, 8))
    found = [nc4(features, weight, means, bias).item()]
    for tensor, number in ((weight, -1.0), (means, -1.0), (bias, -2.0)):
        # Behind the back of the version counter, as averaged weights are.
        tensor.data.mul_(number)
        found.append(nc4(features, weight, means, bias).item())
        expected = reference.nc4(*(t.numpy() for t in (features, weight, means, bias)))
        assert found[-1] == pytest.approx(expected)
    assert len({*found}) > 2
    assert nc4(features, weight, means).item() == pytest.approx(
        reference.nc4(*(t.numpy() for t in (features, weight, means)))
    )


@pytest.mark.parametrize("offset", [0.0, 1.0, 4.0, 1e4])
def test_features_near_the_origin_keep_their_digits_without_a_centre(offset: float) -> None:
    """Distances decide but where the two nearest differ by less than what rounding makes of either way."""
    features, weight, means, _ = some_layer(6, 200, offset=offset)
    x, m = torch.tensor(features).float(), torch.tensor(means)
    own = NearestMean.of(m, torch.float32)
    assert (own.centre is None) == (offset < 4)
    squares = torch.cdist(x.double(), m).square()
    two = squares.topk(2, 1, largest=False).values
    around = x.double() - m.mean(0)
    # The same for both ways: a few roundings of ‖h − m‖ ‖m_c − m‖, and of the entries themselves.
    size = around.norm(dim=1) * (m - m.mean(0)).norm(dim=1).max()
    bound = 16 * torch.finfo(torch.float32).eps * (size + x.norm(dim=1) * (m - m.mean(0)).norm(dim=1).max())
    decided = two[:, 1] - two[:, 0] > bound
    assert decided.double().mean() > 0.9
    assert torch.equal(own(x)[decided], squares.argmin(1)[decided])
    joined = nc4(x, torch.tensor(weight).float(), m)
    apart = (x.double() @ torch.tensor(weight).T).argmax(1) != squares.argmin(1)
    assert joined.item() == pytest.approx(apart.double().mean().item(), abs=(~decided).double().mean().item() + 1e-6)


@pytest.mark.parametrize("number", [torch.inf, -torch.inf, torch.nan])
def test_nc4_is_not_known_where_a_number_is_not_finite(number: float) -> None:
    for place in range(4):
        tensors = [torch.tensor(a) for a in some_layer(4, 5)]
        tensors[place].view(-1)[0] = number
        assert nc4(*tensors).isnan()


def test_nc4_of_logits_whose_sum_leaves_the_range() -> None:
    features = torch.full((4, 1), 1e19) * torch.tensor([[1.0], [1.0], [1.0], [-1.0]])
    weight = torch.tensor([[1e19], [-1e19]])
    assert nc4(features, weight, weight) == 0
