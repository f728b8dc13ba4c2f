"""Two processes give what one gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from nc_callbacks.statistics import ClassStatistics, OutputErrors, SoftmaxStatistics
from tests import reference, reference_more
from tests.processes import on_ranks
from tests.statistics.common import COVARIANCES, RTOL, assert_gathered, assert_moments, dataset, some_outputs

SHARDS = ["unequal", "float64", "empty", "given_shift", "inference_mode", "autocast"]


def shards(name: str) -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]], dict[str, Any]]:
    """The samples of the two ranks, those that they get later, and arguments of the statistics.

    The first rank has no sample of class 2, or else the second one has no sample at all.
    """
    x, y, _, expected = dataset("offset", torch.float64 if name in ("float64", "empty") else torch.float32)
    first = (y != 2) & (torch.arange(len(y)) % 4 > 0)
    if name == "empty":
        first[:-20] = True
    early = torch.arange(len(y)) < len(y) - 20
    now, later = ([(x[part & mine], y[part & mine]) for mine in (first, ~first)] for part in (early, ~early))
    kwargs = {"shift": torch.tensor(expected.means)} if name == "given_shift" else {}
    return now, later, kwargs


def outputs_for(y: Tensor) -> Tensor:
    return some_outputs(4, softmax=False, n=len(y))[0]


def compute_on_one_rank() -> dict[Any, Any]:
    rank = dist.get_rank()
    results: dict[Any, Any] = {}
    sent: list[int] = []
    reduce = dist.all_reduce

    def counting(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        sent.append(tensor.nbytes)
        return reduce(tensor, *args, **kwargs)

    dist.all_reduce = counting
    # Only sums are exchanged: what a gather moves grows with the number of ranks.
    for gather in ("all_gather", "all_gather_object", "all_gather_into_tensor", "gather", "gather_object"):
        setattr(dist, gather, None)
    for name in SHARDS:
        now, later, kwargs = shards(name)
        metrics: dict[str, Any] = {c: ClassStatistics(4, covariance=c, **kwargs) for c in COVARIANCES}  # type: ignore[arg-type]
        metrics |= {"errors": OutputErrors(4), "softmax": SoftmaxStatistics(4)}
        for key, metric in metrics.items():
            for step, (x, y) in {"now": now[rank], "later": later[rank]}.items():
                if len(y):
                    metric.update(outputs_for(y) if key in ("errors", "softmax") else x, y)
                with (
                    torch.inference_mode(name == "inference_mode"),
                    torch.autocast("cpu", dtype=torch.bfloat16, enabled=name == "autocast"),
                ):
                    sent.clear()
                    results[name, key, step] = metric.compute()
                    results["sent", name, key, step] = list(sent)
    widths = ClassStatistics(4)
    widths.update(torch.ones(2, 3 + rank), torch.arange(2))
    with pytest.raises(ValueError, match=f"as many features a sample, got {3 + rank} here"):
        widths.compute()
    # The second rank has the coarser features; a third metric has samples on the first rank alone.
    x, y, _ = dataset("offset")[:3]
    precise, alone = ClassStatistics(4), ClassStatistics(4)
    precise.update(x.bfloat16() if rank else x, y)
    if not rank:
        alone.update(x, y)
    results["precision"] = [precise.compute().precision, alone.compute().precision]
    results["own precision"] = float(precise.precision)
    # One row that is not finite on the first rank, two on the second.
    broken = ClassStatistics(4)
    x = x.clone()
    x[: 1 + rank] = torch.nan
    broken.update(x, y)
    results["nonfinite"] = broken.compute().nonfinite
    # As many targets that are no class, which are counted where asking at once would wait for a device.
    for metric in (ClassStatistics(4), OutputErrors(4), SoftmaxStatistics(4)):
        metric.update(outputs_for(y), y)
        metric.invalid += 1 + rank
        with pytest.raises(ValueError, match=r"^3 targets lie outside"):
            metric.compute()
    return results


@pytest.fixture(scope="module")
def ranks() -> list[dict[Any, Any]]:
    """What either of two processes computed from its shard of the samples."""
    return on_ranks(compute_on_one_rank, 2)


@pytest.mark.parametrize("step", ["now", "later"])
@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("name", SHARDS)
def test_two_processes_equal_one(ranks: list[dict[Any, Any]], name: str, covariance: str, step: str) -> None:
    now, later, _ = shards(name)
    assert [len(y) == 0 for _, y in now] == [False, name == "empty"]
    x, y = (torch.cat(parts) for parts in zip(*(now if step == "now" else now + later), strict=True))
    expected = reference.moments(x.double().numpy(), y.numpy(), 4)
    for results in ranks:
        moments = results[name, covariance, step]
        assert_gathered(moments, covariance)
        assert_moments(moments, expected, RTOL[x.dtype])


def test_precision_of_two_processes_is_the_coarser(ranks: list[dict[Any, Any]]) -> None:
    assert [results["precision"] for results in ranks] == [[2**-7, 2**-23]] * 2
    assert [results["own precision"] for results in ranks] == [2**-23, 2**-7]


def test_rows_that_are_not_finite_are_counted_over_ranks(ranks: list[dict[Any, Any]]) -> None:
    assert [results["nonfinite"] for results in ranks] == [3, 3]


@pytest.mark.parametrize("step", ["now", "later"])
@pytest.mark.parametrize("name", SHARDS)
def test_output_errors_of_two_processes_equal_one(ranks: list[dict[Any, Any]], name: str, step: str) -> None:
    now, later, _ = shards(name)
    targets = [y for _, y in (now if step == "now" else now + later)]
    outputs = torch.cat([outputs_for(y) for y in targets])
    expected = reference.quasi_interpolation(outputs.numpy(), torch.cat(targets).numpy())
    for results in ranks:
        values = {key: value.item() for key, value in results[name, "errors", step].items()}
        assert values == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("step", ["now", "later"])
@pytest.mark.parametrize("name", SHARDS)
def test_softmax_expectations_of_two_processes_equal_one(ranks: list[dict[Any, Any]], name: str, step: str) -> None:
    now, later, _ = shards(name)
    targets = [y for _, y in (now if step == "now" else now + later)]
    outputs = torch.cat([outputs_for(y) for y in targets]).double().numpy()
    probabilities, products = reference_more.softmax_expectations(outputs, torch.cat(targets).numpy())
    for results in ranks:
        found = results[name, "softmax", step]
        np.testing.assert_allclose(found.probabilities, probabilities, rtol=1e-6)
        np.testing.assert_allclose(found.products, products, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("key", [*COVARIANCES, "errors", "softmax"])
def test_what_is_sent_depends_on_the_shapes_alone(ranks: list[dict[Any, Any]], key: str) -> None:
    sent = [results["sent", "unequal", key, step] for results in ranks for step in ("now", "later")]
    assert all(sizes == sent[0] for sizes in sent)
    k, p = 4, shards("unequal")[0][0][0].shape[1]
    state = {
        "none": k * p,
        "pooled": k * p + p * p,
        "per_class": k * p + k * p * p,
        "errors": 6,
        "softmax": k * k + k**3,
    }
    # The state once, the class centres once more, and a few numbers per class.
    assert sum(sent[0]) <= 8 * (state[key] + k * p + 10 * k)
    # Counts (and the layout), the agreement on a shift, the sums.
    assert len(sent[0]) <= 3


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_with_one_shift_for_all_ranks_the_sums_are_exchanged_at_once(
    ranks: list[dict[Any, Any]], covariance: str
) -> None:
    k, p = 4, shards("given_shift")[0][0][0].shape[1]
    products = {"none": 0, "pooled": p * p, "per_class": k * p * p}[covariance]
    for results in ranks:
        assert results["sent", "given_shift", covariance, "now"] == [8 * (k + 12), 4 * (k * p + 2 * k + products)]
