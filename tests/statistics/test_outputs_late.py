"""OutputErrors late in training, merged, loaded, and with labels of any type."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nc_callbacks.statistics import OutputErrors, SoftmaxStatistics
from nc_callbacks.statistics.errors import ErrorMoments
from tests import reference
from tests.statistics.common import NO_UPDATE, some_outputs


def late_logits(margin: float, k: int = 5) -> tuple[Tensor, Tensor]:
    targets = torch.arange(200) % k
    noise = 0.3 * torch.randn(200, k, generator=torch.Generator().manual_seed(0))
    return margin * torch.nn.functional.one_hot(targets, k) + noise, targets


def exact_errors(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """In extended precision, with ε summed from the others."""
    f = logits.double().numpy().astype(np.longdouble)
    e = np.exp(f - f.max(1, keepdims=True))
    p = e / e.sum(1, keepdims=True)
    off = np.array([np.delete(row, y) for row, y in zip(p, targets, strict=True)])
    epsilon = off.sum(1)
    return {
        "sqi_epsilon": float(epsilon.mean()),
        "sqi_epsilon_off": float(off.mean()),
        "sqi_epsilon_rel_std": float(epsilon.std() / epsilon.mean()),
        "sqi_epsilon_off_rel_std": float(off.std() / off.mean()),
        "sqi_epsilon_std": float(epsilon.std()),
        "sqi_epsilon_off_std": float(off.std()),
        "sqi_epsilon_off_sample_rel_std": float(np.sqrt(off.var(1).mean()) / off.mean()),
    }


@pytest.mark.parametrize("margin", [1, 10, 17, 30, 87, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softmax_errors_of_any_size(margin: float, dtype: torch.dtype) -> None:
    logits, targets = late_logits(margin)
    metric = OutputErrors(5, "softmax")
    for f, y in zip(logits.to(dtype).split(64), targets.split(64), strict=True):
        metric.update(f, y)
    values = {name: value.item() for name, value in metric.compute().items()}
    for name, expected in exact_errors(logits, targets).items():
        assert values[name] == pytest.approx(expected, rel=1e-9, abs=0), name
    assert values["sqi_ratio"] == pytest.approx(1, abs=1e-12)
    assert abs(values["sqi_gap"]) <= 1e-12 * values["sqi_epsilon"]


def test_spreads_that_no_float_holds_are_not_numbers() -> None:
    logits, targets = late_logits(500)
    metric = OutputErrors(5, "softmax")
    metric.update(logits, targets)
    values = {name: value.item() for name, value in metric.compute().items()}
    assert values["sqi_epsilon"] == pytest.approx(exact_errors(logits, targets)["sqi_epsilon"], rel=1e-9, abs=0)
    assert values["sqi_ratio"] == pytest.approx(1)
    assert all(np.isnan(values[name]) for name in values if name.endswith("std"))


@pytest.mark.parametrize("kind", ["raw", "softmax"])
def test_a_large_batch_is_taken_in_slices(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs, targets = some_outputs(3, softmax=True)
    whole, sliced = OutputErrors(3, kind), OutputErrors(3, kind)
    whole.update(outputs, targets)
    monkeypatch.setattr("nc_callbacks.statistics.outputs._SLICE_BYTES", 3 * 8 * 7)
    sliced.update(outputs, targets)
    torch.testing.assert_close(sliced.moments, whole.moments, rtol=1e-13, atol=0)


@NO_UPDATE
@pytest.mark.parametrize("as_state", [False, True])
def test_other_kinds_are_not_merged(as_state: bool) -> None:
    metric = OutputErrors(3)
    for other, what in (
        (OutputErrors(10), "errors of raw outputs of 3 classes, those of raw outputs of 10 classes"),
        (OutputErrors(3, "softmax"), "errors of raw outputs of 3 classes, those of softmax outputs of 3 classes"),
    ):
        other.update(torch.zeros(2, other.num_classes), torch.tensor([0, 1]))
        with pytest.raises(ValueError, match=f"Cannot merge: these are the {what}"):
            metric.merge_state(other.metric_state if as_state else other)
    assert metric.moments.count_nonzero() == 0


@NO_UPDATE
@pytest.mark.parametrize("widths", [(torch.float32, torch.float64), (torch.float64, torch.float32)])
def test_states_of_two_precisions_merge(widths: tuple[torch.dtype, torch.dtype]) -> None:
    outputs, targets = some_outputs(3, softmax=False)
    a, b = OutputErrors(3), OutputErrors(3)
    a.update(outputs[:9], targets[:9])
    b.update(outputs[9:], targets[9:])
    a.set_dtype(widths[0])
    b.set_dtype(widths[1])
    a.merge_state(b)
    expected = reference.quasi_interpolation(outputs.numpy(), targets.numpy())
    assert {name: value.item() for name, value in a.compute().items()} == pytest.approx(expected, rel=1e-5)


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric OutputErrors was called before")
def test_a_state_saved_before_it_had_a_kind_loads() -> None:
    outputs, targets = some_outputs(3, softmax=False)
    metric, loaded = OutputErrors(3), OutputErrors(3)
    metric.update(outputs, targets)
    for each in (metric, loaded):
        each.persistent(True)
    saved = metric.state_dict()
    assert ErrorMoments(*saved["moments"]).samples == len(targets)
    loaded.load_state_dict({name: saved[name] for name in ("moments", "invalid")})
    assert loaded.compute() == metric.compute()
    loaded.merge_state({name: metric.metric_state[name] for name in ("moments", "invalid")})
    assert loaded.moments[0] == 2 * len(targets)
    other = OutputErrors(3, "softmax")
    other.persistent(True)
    with pytest.raises(RuntimeError, match="those of raw outputs of 3 classes"):
        other.load_state_dict(saved)


@pytest.mark.parametrize("metric_type", [OutputErrors, SoftmaxStatistics])
class TestLabels:
    @pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8, torch.float32, torch.bool])
    def test_of_any_type_that_holds_integers(self, metric_type: Any, dtype: torch.dtype) -> None:
        outputs, targets = torch.randn(6, 3), torch.tensor([0, 1, 1, 0, 1, 0])
        wide, narrow = metric_type(3), metric_type(3)
        wide.update(outputs, targets)
        narrow.update(outputs, targets.to(dtype))
        for name in wide.metric_state:
            assert torch.equal(wide.metric_state[name], narrow.metric_state[name])

    @pytest.mark.parametrize("wrong", [0.5, float("nan"), 3.0, -1.0, 1j])
    def test_others_raise(self, metric_type: Any, wrong: complex) -> None:
        with pytest.raises(ValueError, match="targets must"):
            metric_type(3).update(torch.zeros(2, 3), torch.tensor([0, wrong]))

    def test_ignored_floats(self, metric_type: Any) -> None:
        metric = metric_type(3, ignore_index=-100)
        metric.update(torch.zeros(3, 3), torch.tensor([0.0, -100.0, 2.0]))
        assert _samples(metric) == 2


def _samples(metric: OutputErrors | SoftmaxStatistics) -> int:
    return int(metric.moments[0] if isinstance(metric, OutputErrors) else metric.counts.sum())


@NO_UPDATE
def test_a_thousand_million_samples() -> None:
    # Doubled 25 times, and 300 small batches of another kind after them.
    outputs, targets = some_outputs(3, softmax=False)
    outputs = outputs.double()
    metric = OutputErrors(3)
    metric.update(outputs, targets)
    first = metric.compute()
    for _ in range(25):
        metric.merge_state(metric)
    assert int(metric.moments[0]) == len(targets) * 2**25 > 1e9
    for name, value in metric.compute().items():
        assert value.item() == pytest.approx(first[name].item(), rel=1e-9), name
    other = OutputErrors(3)
    other.update(outputs + 5, targets)
    for _ in range(300):
        metric.update(outputs + 5, targets)
    share = 300 / (300 + 2**25)
    mean = first["sqi_epsilon"] * (1 - share) + other.compute()["sqi_epsilon"] * share
    squares = first["sqi_epsilon_std"] ** 2 + share * (1 - share) * 25
    assert metric.compute()["sqi_epsilon"].item() == pytest.approx(mean.item(), rel=1e-12)
    assert metric.compute()["sqi_epsilon_std"].item() == pytest.approx(squares.sqrt().item(), rel=1e-10)


@pytest.mark.filterwarnings("error")
def test_softmax_statistics_that_others_were_merged_into_have_samples() -> None:
    logits, targets = torch.randn(20, 3), torch.arange(20) % 3
    empty, other = SoftmaxStatistics(3), SoftmaxStatistics(3)
    other.update(logits, targets)
    empty.merge_state(other)
    assert torch.equal(empty.compute().products, other.compute().products)


@NO_UPDATE
def test_softmax_statistics_merge_where_the_classes_are_the_same() -> None:
    logits, targets = torch.randn(20, 3), torch.arange(20) % 3
    whole, a, b = SoftmaxStatistics(3), SoftmaxStatistics(3), SoftmaxStatistics(3)
    whole.update(logits, targets)
    a.update(logits[:7], targets[:7])
    b.update(logits[7:], targets[7:])
    a.merge_state(b.metric_state)
    torch.testing.assert_close(a.compute().products, whole.compute().products)
    with pytest.raises(ValueError, match="Cannot merge: 3 classes here, 4 there"):
        a.merge_state(SoftmaxStatistics(4))
    with pytest.raises(ValueError, match="Expected a SoftmaxStatistics"):
        a.merge_state(OutputErrors(3))
