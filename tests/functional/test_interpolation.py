from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from nc_callbacks.functional import quasi_interpolation_errors
from nc_callbacks.statistics import OutputErrors
from tests import reference_more as reference

SHAPES = [(1, 2), (9, 2), (20, 3), (50, 10)]


def some_outputs(n: int, k: int) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(n * k)
    return torch.tensor(rng.normal(size=(n, k))), torch.tensor(rng.integers(k, size=n))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_equals_its_definition(n: int, k: int, dtype: torch.dtype) -> None:
    outputs, targets = some_outputs(n, k)
    epsilon, off = quasi_interpolation_errors(outputs.to(dtype), targets)
    assert (epsilon.dtype, off.dtype) == (dtype, dtype)
    # One subtraction: the two agree to the rounding of the outputs, and exactly in float64.
    expected = reference.quasi_interpolation_errors(outputs.to(dtype).numpy(), targets.numpy())
    for value, definition in zip((epsilon, off), expected, strict=True):
        assert value.shape == definition.shape
        assert np.array_equal(value.numpy(), definition.astype(value.numpy().dtype))


def test_two_classes_leave_one_other_each() -> None:
    outputs = torch.tensor([[0.75, 0.5], [0.25, 2.0]])
    epsilon, off = quasi_interpolation_errors(outputs, torch.tensor([0, 1]))
    assert epsilon.tolist() == [0.25, -1.0]
    assert off.tolist() == [[0.5], [0.25]]


def test_one_hot_outputs_have_no_errors() -> None:
    targets = torch.arange(5)
    epsilon, off = quasi_interpolation_errors(torch.eye(5), targets)
    assert not epsilon.any()
    assert not off.any()


def test_softmax_outputs_share_their_error_among_the_others() -> None:
    outputs, targets = some_outputs(30, 6)
    epsilon, off = quasi_interpolation_errors(outputs.softmax(1), targets)
    torch.testing.assert_close(epsilon, off.sum(1))


@pytest.mark.parametrize("kind", ["raw", "softmax"])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_agrees_with_output_errors(n: int, k: int, kind: str) -> None:
    outputs, targets = some_outputs(n, k)
    errors = OutputErrors(k, outputs=kind)  # type: ignore[arg-type]
    for f, y in zip(outputs.split(7), targets.split(7), strict=True):
        errors.update(f, y)
    epsilon, off = quasi_interpolation_errors(outputs.softmax(1) if kind == "softmax" else outputs, targets)
    streamed = errors.compute()
    expected = {
        "sqi_epsilon": epsilon.mean(),
        "sqi_epsilon_off": off.mean(),
        "sqi_epsilon_std": epsilon.std(correction=0),
        "sqi_epsilon_off_std": off.std(correction=0),
        "sqi_epsilon_off_sample_rel_std": off.var(1, correction=0).mean().sqrt() / off.mean(),
    }
    for name, value in expected.items():
        assert streamed[name].item() == pytest.approx(value.item(), rel=1e-12, abs=1e-15), name


@pytest.mark.parametrize("margin", [5.0, 20.0, 80.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_errors_of_the_softmax_keep_their_digits(margin: float, dtype: torch.dtype) -> None:
    outputs, targets = some_outputs(20, 4)
    logits = (outputs + margin * torch.nn.functional.one_hot(targets, 4)).to(dtype)
    epsilon, off = quasi_interpolation_errors(logits, targets, softmax=True)
    assert (epsilon.dtype, off.dtype) == (dtype, dtype)
    exact = np.exp(logits.double().numpy().astype(np.longdouble))
    others = np.array([np.delete(e / e.sum(), y) for e, y in zip(exact, targets, strict=True)]).astype(float)
    np.testing.assert_allclose(off, others, rtol=1e-6)
    np.testing.assert_allclose(epsilon, others.sum(1), rtol=1e-6)


def test_gradients_of_the_errors_of_the_softmax() -> None:
    outputs, targets = some_outputs(5, 3)
    assert torch.autograd.gradcheck(lambda f: quasi_interpolation_errors(f, targets, True), outputs.requires_grad_())


def test_half_precision_is_widened() -> None:
    outputs, targets = some_outputs(20, 3)
    half = outputs.half()
    for value, wide in zip(
        quasi_interpolation_errors(half, targets), quasi_interpolation_errors(half.float(), targets), strict=True
    ):
        assert value.dtype == torch.float32
        assert torch.equal(value, wide)


def test_no_samples() -> None:
    epsilon, off = quasi_interpolation_errors(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    assert (epsilon.shape, off.shape) == ((0,), (0, 3))


def test_gradients() -> None:
    outputs, targets = some_outputs(5, 3)
    assert torch.autograd.gradcheck(lambda f: quasi_interpolation_errors(f, targets), outputs.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_narrow_integer_targets(dtype: torch.dtype) -> None:
    outputs, targets = some_outputs(20, 3)
    assert torch.equal(
        quasi_interpolation_errors(outputs, targets.to(dtype))[1], quasi_interpolation_errors(outputs, targets)[1]
    )


@pytest.mark.parametrize(
    ("outputs", "targets"),
    [
        (torch.zeros(3), torch.zeros(3).long()),
        (torch.zeros(3, 1), torch.zeros(3).long()),
        (torch.zeros(3, 2, 2), torch.zeros(3).long()),
        (torch.zeros(3, 2), torch.zeros(2).long()),
        (torch.zeros(3, 2), torch.zeros(3, 1).long()),
    ],
)
def test_bad_shapes_raise(outputs: Tensor, targets: Tensor) -> None:
    with pytest.raises(ValueError, match=r"outputs must be \(n, k\) with k ≥ 2, targets \(n,\)"):
        quasi_interpolation_errors(outputs, targets)


@pytest.mark.parametrize("wrong", [-1, 3, -100])
def test_targets_out_of_range_raise(wrong: int) -> None:
    with pytest.raises(ValueError, match="targets must lie in 0…2, got"):
        quasi_interpolation_errors(torch.zeros(4, 3), torch.tensor([0, wrong, 1, 2]))
