"""A GPU is not waited for while batches are gathered: once a look, not once a batch."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from nc_callbacks import (
    ClassStatistics,
    FeatureSpectrum,
    NeuralCollapse,
    OutputErrors,
    QuasiInterpolation,
    WeightMeanAlignment,
)
from nc_callbacks.engine.decisions import Decisions
from nc_callbacks.engine.split import SplitStatistics
from tests.callbacks.common import Classifier, loader, samples, trainer, whole_set

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@contextmanager
def no_wait() -> Iterator[None]:
    """Whatever waits for the device is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def unwaiting(method: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with no_wait():
            return method(*args, **kwargs)

    return wrapped


@pytest.mark.parametrize("ignore_index", [None, -100])
@pytest.mark.parametrize("covariance", ["none", "pooled", "per_class"])
def test_class_statistics_do_not_wait(covariance: Any, ignore_index: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(5_000, 32, generator=generator), torch.randint(4, (5_000,), generator=generator)
    expected = ClassStatistics(4, covariance=covariance)
    statistics = ClassStatistics(4, covariance=covariance, ignore_index=ignore_index).cuda()
    parts = [(some.cuda(), labels.cuda()) for some, labels in zip(x.split(512), y.split(512), strict=True)]
    for _ in range(9):
        expected.update(x, y)
        with no_wait():
            for some, labels in parts:
                statistics.update(some, labels)
            statistics.settle()
    found = statistics.compute()
    torch.testing.assert_close(found.means.cpu(), expected.compute().means, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.traces.cpu(), expected.compute().traces, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["raw", "softmax"])
def test_output_errors_do_not_wait(kind: Any) -> None:
    outputs, targets = torch.randn(100, 4).cuda(), torch.randint(4, (100,)).cuda()
    errors = OutputErrors(4, kind, ignore_index=-100).cuda()
    with no_wait():
        errors.update(outputs, targets)
    assert all(value.isfinite() for value in errors.compute().values())


@pytest.mark.filterwarnings("ignore:nc1 is known to")
@pytest.mark.parametrize("ignore_index", [None, -100])
def test_a_look_waits_for_no_batch(monkeypatch: pytest.MonkeyPatch, ignore_index: int | None) -> None:
    for kind, names in ((SplitStatistics, ("update", "_settle")), (Decisions, ("update_all",))):
        for name in names:
            monkeypatch.setattr(kind, name, unwaiting(getattr(kind, name)))
    kinds: list[Any] = [NeuralCollapse, WeightMeanAlignment, QuasiInterpolation, FeatureSpectrum]
    callbacks = [kind(splits=["train", "val"], ignore_index=ignore_index) for kind in kinds]
    fit = trainer(*callbacks, accelerator="gpu", devices=1, max_epochs=2)
    fit.fit(Classifier(), loader(0), loader(1))
    for callback in callbacks:
        assert [record["epoch"] for record in callback.history] == [0, 1]


@pytest.mark.parametrize("default", ["cpu", "cuda"])
@pytest.mark.parametrize("place", ["cpu", "cuda"])
def test_data_and_default_device(place: str, default: str) -> None:
    (x, y), (val, labels) = samples(), samples(1)
    splits = TensorDataset(x.to(place), y.to(place)), TensorDataset(val.to(place), labels.to(place))
    callback, model = NeuralCollapse(splits=["train", "val"]), Classifier()
    with torch.device(default):
        fit = trainer(callback, accelerator="gpu", devices=1)
        fit.fit(model, *(DataLoader(split, 16) for split in splits))
    for name, data in (("train", (x, y)), ("val", (val, labels))):
        for metric, value in whole_set(model, data, (x, y)).items():
            assert callback.latest[f"nc/{name}/{metric}"] == pytest.approx(value, rel=1e-5, abs=1e-7), metric


def search_at_once(worker: int) -> None:
    gc.set_threshold(20, 2, 2)


@pytest.mark.parametrize("mode", ["epoch_end", "online"])
def test_workers_find_nothing_of_the_device_in_their_garbage(mode: Any) -> None:
    kinds: list[Any] = [NeuralCollapse, WeightMeanAlignment, QuasiInterpolation, FeatureSpectrum]
    callbacks = [kind(mode=mode) for kind in kinds]
    data = loader(num_workers=2, worker_init_fn=search_at_once)
    fit = trainer(*callbacks, accelerator="gpu", devices=1, max_epochs=6)
    fit.fit(Classifier(), data)
    assert fit.current_epoch == 6
