"""OutputErrors against whole-set float64 computation."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from hypothesis import example, given
from torch import Tensor

from nc_callbacks.statistics import ClassStatistics, OutputErrors
from tests import reference
from tests.statistics.common import NO_UPDATE, NUM_SAMPLES, ONE_BY_ONE, partitions, some_examples, some_outputs


def errors_of(f: Tensor, y: Tensor, batch_size: int = 7, **kwargs: Any) -> OutputErrors:
    metric = OutputErrors(f.shape[-1], **kwargs)
    for outputs, targets in zip(f.split(batch_size), y.split(batch_size), strict=True):
        metric.update(outputs, targets)
    return metric


def assert_errors(metric: OutputErrors, expected: dict[str, float], rel: float = 1e-6) -> None:
    values = {name: value.item() for name, value in metric.compute().items()}
    # The gap is a difference: its rounding is that of its terms.
    assert values == pytest.approx(expected, rel=rel, abs=rel * abs(expected["sqi_epsilon"]))


@pytest.mark.parametrize("k", [2, 3, 10])
@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_output_errors_equal_their_definitions(k: int, softmax: bool, dtype: torch.dtype) -> None:
    outputs, targets = some_outputs(k, softmax)
    assert targets.bincount().unique().numel() > 1
    metric = errors_of(outputs.to(dtype), targets, outputs="softmax" if softmax else "raw")
    expected = reference.quasi_interpolation(outputs.numpy(), targets.numpy(), softmax)
    assert_errors(metric, expected, 1e-6 if dtype == torch.float32 else 1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_outputs_are_widened(dtype: torch.dtype) -> None:
    outputs, targets = some_outputs(3, softmax=True)
    outputs = outputs.to(dtype)
    expected = reference.quasi_interpolation(outputs.double().numpy(), targets.numpy(), softmax=True)
    assert_errors(errors_of(outputs, targets, outputs="softmax"), expected)


@pytest.mark.parametrize("merging", [False, True])
@NO_UPDATE
@some_examples
@given(parts=partitions())
@example(parts=ONE_BY_ONE)
def test_order_and_batches_do_not_matter_to_output_errors(merging: bool, parts: list[list[int]]) -> None:
    outputs, targets = some_outputs(3, softmax=False, n=NUM_SAMPLES)
    metric = OutputErrors(3)
    for i, part in enumerate(parts):
        if merging:
            other = errors_of(outputs[part], targets[part])
            metric.merge_state(other if i % 2 else other.metric_state)
        else:
            metric.update(outputs[part], targets[part])
    assert_errors(metric, reference.quasi_interpolation(outputs.numpy(), targets.numpy()))


@pytest.mark.parametrize("ignore_index", [-100, 255, 1])
def test_output_errors_leave_out_ignored_samples(ignore_index: int) -> None:
    outputs, targets = some_outputs(3, softmax=False)
    keep = (torch.arange(len(targets)) % 4 > 0) & (targets != ignore_index)
    expected = reference.quasi_interpolation(outputs[keep].numpy(), targets[keep].numpy())
    metric = errors_of(
        torch.where(keep[:, None], outputs, torch.nan), targets.where(keep, ignore_index), ignore_index=ignore_index
    )
    assert_errors(metric, expected)


def test_output_errors_of_sequences() -> None:
    outputs, targets = some_outputs(3, softmax=False)
    expected = reference.quasi_interpolation(outputs.numpy(), targets.numpy())
    assert_errors(errors_of(outputs.view(8, 5, 3), targets.view(8, 5)), expected)


@pytest.mark.parametrize("k", [2, 3, 10])
def test_exact_quasi_interpolation_has_no_spread(k: int) -> None:
    targets = torch.arange(3 * k) % k
    # Powers of two, so that the outputs are exact in float32.
    outputs = torch.full((3 * k, k), 2.0**-6).scatter(1, targets[:, None], 1 - (k - 1) * 2.0**-6)
    values = errors_of(outputs, targets).compute()
    assert values["sqi_epsilon"] == (k - 1) * 2.0**-6
    assert values["sqi_ratio"] == 1
    assert values["sqi_gap"] == 0
    assert all(values[name] == 0 for name in values if name.endswith("std"))


@pytest.mark.parametrize("k", [2, 10])
def test_spread_far_below_the_mean_keeps_its_digits(k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(k, (200,), generator=generator)
    outputs = 0.3 * (1 + 1e-6 * torch.randn(200, k, generator=generator, dtype=torch.float64)).float()
    expected = reference.quasi_interpolation(outputs.numpy(), targets.numpy())
    assert 5e-7 < expected["sqi_epsilon_off_rel_std"] < 2e-6
    assert_errors(errors_of(outputs, targets), expected, 1e-12)


def test_output_errors_called_reset_and_copied() -> None:
    outputs, targets = some_outputs(3, softmax=False)
    metric = OutputErrors(3)
    metric.update(outputs + 1, targets)
    metric.reset()
    of_batch = metric(outputs[:10], targets[:10])
    expected = reference.quasi_interpolation(outputs[:10].numpy(), targets[:10].numpy())
    assert of_batch["sqi_epsilon_std"].item() == pytest.approx(expected["sqi_epsilon_std"], rel=1e-6)
    metric = pickle.loads(pickle.dumps(metric))
    with torch.inference_mode():
        metric.update(outputs[10:20], targets[10:20])
    metric.compute()
    metric.merge_state(errors_of(outputs[20:], targets[20:]))
    assert_errors(metric, reference.quasi_interpolation(outputs.numpy(), targets.numpy()))


def test_output_errors_never_wait_for_the_device() -> None:
    metric = OutputErrors(3, outputs="softmax", ignore_index=-1).to("meta")
    metric.update(torch.empty(8, 3, device="meta"), torch.empty(8, dtype=torch.long, device="meta"))
    assert metric.moments.device.type == "meta"


@pytest.mark.parametrize(
    ("outputs", "targets", "match"),
    [
        (torch.zeros(4, 2), torch.zeros(4, dtype=torch.long), r"outputs must be .* \(4, 3\).* got \(4, 2\)"),
        (torch.zeros(4, 3), torch.zeros(5, dtype=torch.long), r"outputs must be .* \(5, 3\).* got \(4, 3\)"),
        (torch.zeros(4, 5, 3), torch.zeros(4, dtype=torch.long), r"outputs must be .* got \(4, 5, 3\)"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), r"targets must lie in 0…2 \(num_classes=3\), got \[3\]"),
        (torch.zeros(2, 3), torch.tensor([-1, 3]), r"targets must lie in 0…2 \(num_classes=3\), got \[-1, 3\]"),
        (torch.zeros(2, 3), torch.tensor([0.5, 1.0]), "targets must be integer"),
    ],
)
def test_wrong_outputs_raise(outputs: Tensor, targets: Tensor, match: str) -> None:
    metric = OutputErrors(3)
    with pytest.raises(ValueError, match=match):
        metric.update(outputs, targets)
    assert metric.moments.count_nonzero() == 0


def test_wrong_arguments_of_output_errors_raise() -> None:
    with pytest.raises(ValueError, match="num_classes must be at least 2"):
        OutputErrors(1)
    with pytest.raises(ValueError, match=r"outputs must be .* got 'sigmoid'"):
        OutputErrors(3, outputs="sigmoid")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Expected an OutputErrors"):
        OutputErrors(3).merge_state(ClassStatistics(3))
    metric = OutputErrors(3)
    metric.update(torch.zeros(1, 3), torch.tensor([0]))
    metric.invalid += 2
    with pytest.raises(ValueError, match="2 targets lie outside 0…2"):
        metric.compute()
    whole = OutputErrors(3)
    whole.update(torch.zeros(1, 3), torch.tensor([0]))
    whole.invalid += 3
    whole.merge_state(metric)
    with pytest.raises(ValueError, match="5 targets lie outside 0…2"):
        whole.compute()
