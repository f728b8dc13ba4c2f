"""NC1 where rounding could be taken for a direction: against float64, or with a warning."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from nc_callbacks.functional import nc1
from nc_callbacks.functional.rounding import Rounding
from nc_callbacks.statistics import ClassMoments
from tests import reference
from tests.functional.networks import LAYERS, blobs, features_of, moments_of, network


def value_of(moments: ClassMoments, centre: Tensor | None = None) -> tuple[float, list[str]]:
    """NC1 and what it warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = nc1(moments.within, moments.means, centre, precision=moments.precision).item()
    return value, [str(warning.message) for warning in caught]


@pytest.mark.parametrize(("k", "p"), [(4, 12), (16, 16), (40, 16)])
@pytest.mark.parametrize("name", LAYERS)
def test_right_in_every_precision_or_warned_of(name: str, k: int, p: int) -> None:
    model = network(name, p)
    for balanced in (True, False):
        x, targets = blobs(k, 50 * k, balanced)
        exact = reference.moments(features_of(model, x, torch.float64).numpy(), targets.numpy(), k)
        expected = reference.nc1(exact.within, exact.means)
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
            value, warned = value_of(moments_of(features_of(model, x, dtype), targets, k))
            if dtype in (torch.float64, torch.float32):
                assert value == pytest.approx(expected, rel=1e-3), (dtype, balanced)
                assert not warned, (dtype, balanced)
            elif warned:
                assert len(warned) == 1
                assert "nc1 is known to" in warned[0]
            else:
                assert value == pytest.approx(expected, rel=1e-3), (dtype, balanced)


def test_a_wide_gap_is_right_in_half_precision_too() -> None:
    model = network("bottleneck", 12)
    x, targets = blobs(3, 3000, True)
    exact = reference.moments(features_of(model, x, torch.float64).numpy(), targets.numpy(), 3)
    features = features_of(model, x, torch.float64)
    value, _ = value_of(moments_of(features.half(), targets, 3))
    assert value == pytest.approx(reference.nc1(exact.within, exact.means), rel=1e-3)


@pytest.mark.parametrize("shift", [0.0, 3.0, 1000.0])
def test_a_float32_centre_makes_no_direction(shift: float) -> None:
    x, targets = blobs(10, 1000, False)
    features = features_of(network("nothing", 64), x, torch.float32) + shift
    moments = moments_of(features, targets, 10)
    exact = reference.moments(features.double().numpy(), targets.numpy(), 10)
    at = exact.counts / exact.counts.sum() @ exact.means
    value, warned = value_of(moments, features.mean(0))
    assert value == pytest.approx(reference.nc1(exact.within, exact.means, at), rel=1e-4)
    assert not warned or shift == 1000
    assert nc1(moments.within, moments.means, features.mean(0)).item() == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize(("k", "p"), [(5, 12), (12, 5)])
def test_another_centre_is_a_direction_of_its_own(k: int, p: int) -> None:
    features, targets = reference.gaussian_classes([9] * k, p, offset=1)
    exact = reference.moments(features, targets, k)
    for centre in (np.zeros(p), exact.means.mean(0) + 1e-3 * np.arange(p)):
        value = nc1(torch.tensor(exact.within), torch.tensor(exact.means), torch.tensor(centre)).item()
        assert value == pytest.approx(reference.nc1(exact.within, exact.means, centre), rel=1e-9)


@pytest.mark.parametrize(("k", "p"), [(3, 1500), (400, 4), (400, 30)])
def test_rounding_of_the_means_themselves(k: int, p: int) -> None:
    # One direction, or two, and as many again as there are in each entry's last place: these grow with √k + √p.
    rng, rank = np.random.default_rng(0), min(2, k - 2)
    means = rng.normal(size=(k, rank)) @ rng.normal(size=(rank, p))
    value, warned = value_of_float32(np.eye(p), means)
    singular = np.linalg.svd(means - means.mean(0), compute_uv=False)
    assert value == pytest.approx(np.sum(singular[:rank] ** -2), rel=1e-4)
    assert not warned


def value_of_float32(within: reference.Array, means: reference.Array) -> tuple[float, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = nc1(torch.tensor(within).float(), torch.tensor(means).float()).item()
    return value, [str(warning.message) for warning in caught]


def test_a_small_unit_is_a_direction() -> None:
    # Its rounding is in proportion to its own size: 1e-5 of the others is far above it.
    means = np.diag([1.0, 1.0, 1e-5])[[0, 1, 2, 2]] * np.array([[1], [1], [1], [-1]])
    within = np.diag([0.01, 0.01, 1e-12])
    value, warned = value_of_float32(within, means)
    assert value == pytest.approx(reference.nc1(within, means), rel=1e-5)
    assert not warned


def test_directions_that_may_exist_are_named() -> None:
    # Means that differ by less than the last place of bfloat16 along the second axis, of samples that spread there.
    means = 1 + torch.tensor([[1.0, 0.001], [-1.0, 0.001], [0.0, -0.002]], dtype=torch.float64)
    within = 0.01 * torch.eye(2, dtype=torch.float64)
    with pytest.warns(UserWarning, match=r"nc1 is known to no digits .* 1 more are no larger than rounding") as caught:
        value = nc1(within, means, precision=2**-7).item()
    assert len(caught) == 1
    assert value == pytest.approx(0.01 / 2)
    # The same in a precision in which they are there.
    assert nc1(within, means, precision=2**-23).item() == pytest.approx(
        reference.nc1(within.numpy(), means.numpy()), rel=1e-12
    )


@pytest.mark.parametrize(("distance", "digits"), [(1e-2, None), (1e-4, "2 digits"), (1e-5, "1 digit ")])
def test_digits_that_are_left(distance: float, digits: str | None) -> None:
    # Of features around 1, known to 1e-7, the means are `distance` apart.
    means = 1 + distance * torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = nc1(torch.eye(2, dtype=torch.float64), means, precision=2**-23).item()
    assert value == pytest.approx(1 / (2 * distance**2))
    assert [digits in str(warning.message) for warning in caught if digits] == [True] * len(caught)
    assert len(caught) == (digits is not None)


def test_means_that_are_the_same_up_to_rounding() -> None:
    means = 1 + 2**-24 * torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    with pytest.warns(UserWarning, match="nc1 is not known here: all class means are the same"):
        assert nc1(torch.eye(2).double(), means, precision=2**-23) == torch.inf


@pytest.mark.parametrize("k", [4, 40])
def test_gradient_without_the_directions_of_rounding(k: int) -> None:
    x, targets = blobs(k, 50 * k, True)
    model = network("LayerNorm", 12)
    gradients = []
    for dtype in (torch.float64, torch.float32):
        moments = moments_of(features_of(model, x, dtype), targets, k)
        means = moments.means.clone().requires_grad_()
        value = nc1(moments.within, means, precision=moments.precision)
        assert value.item() == pytest.approx(value_of(moments)[0], rel=1e-9)
        # Along the direction that does not exist there is no gradient to compare.
        (gradient,) = torch.autograd.grad(value, means)
        gradients.append(gradient - gradient.mean(1, keepdim=True))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-3 * gradients[0].abs().max().item())


def test_bounds_hold_for_rounded_features() -> None:
    generator = torch.Generator().manual_seed(0)
    exact = 1 + torch.randn(2000, 20, generator=generator, dtype=torch.float64)
    v = torch.linalg.qr(torch.randn(20, 20, generator=generator, dtype=torch.float64)).Q
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        errors = exact.to(dtype).double() - exact
        squares = exact.square().mean(0)
        rounding = Rounding(torch.finfo(dtype).eps, squares, torch.zeros_like(squares))
        moved = (errors @ v).square().mean(0).sqrt()
        assert (moved < rounding.of_features(v)).all()
        assert (moved > rounding.of_features(v) / 100).all()
        classes = errors.view(10, 200, 20)[:, 0]
        assert torch.linalg.svdvals(classes).max() < 10**0.5 * rounding.of_means(v, 10).min()


@pytest.mark.parametrize("precision", [0, -1, 2.0, float("nan")])
def test_what_is_no_precision_raises(precision: float) -> None:
    with pytest.raises(ValueError, match="precision must be ε of a floating-point type"):
        nc1(torch.eye(2), torch.eye(2), precision=precision)
