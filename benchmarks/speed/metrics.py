"""What is computed after the pass: moments and all metrics of all callbacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median

import torch

from nc_callbacks import ClassStatistics, FeatureSpectrum, NeuralCollapse, OutputErrors, WeightMeanAlignment
from nc_callbacks.engine.observation import ClassifierObservation, Observation
from speed.measure import Options, Row, batch, peak_memory, seconds


def rows(options: Options) -> Iterator[Row]:
    for k, p, goal in ((10, 512, 0.05), (1000, 2048, 2)):
        work = all_metrics(k, p, options.device)
        work()
        times = [seconds(work, options.device) for _ in range(5)]
        yield Row("compute of all metrics", f"k = {k:,}, p = {p:,}", median(times), "s", goal)
    k, p = (2_000, 768) if options.quick else (50_000, 768)
    work = collapse_metrics(k, p, options.device)
    what = f"k = {k:,}, p = {p}"
    yield Row("NC1–NC3 of a vocabulary", what, seconds(work, options.device), "s", 60, "once")
    if options.device.type == "cpu":
        above = peak_memory(collapse_metrics, k, p)
        yield Row("the same, memory above the state", what, above, "GiB", 1)


def _gathered(k: int, p: int, device: torch.device | str) -> ClassStatistics:
    """Statistics of two samples per class and more."""
    statistics = ClassStatistics(k).to(device)
    x, _ = batch(4096, p, 2, device)
    for start in range(0, max(2 * k, 2 * p), len(x)):
        y = (torch.arange(start, start + len(x), device=device) // 2) % k
        statistics.update(x + y[:, None] % 7 + torch.arange(p, device=device) % (y[:, None] % 5 + 2), y)
    statistics.settle()
    return statistics


def _observed(statistics: ClassStatistics, weight: torch.Tensor) -> Observation:
    # torchmetrics keeps the last result; here each call computes it.
    statistics._computed = None
    classifier = ClassifierObservation(weight, None, 1.0, 0.0, 1.0)
    return Observation("train", "features", statistics.compute(), 1.0, classifier)


def all_metrics(k: int, p: int, device: torch.device) -> Callable[[], object]:
    statistics, errors = _gathered(k, p, device), OutputErrors(k).to(device)
    outputs, targets = batch(512, k, k, device)
    errors.update(outputs, targets)
    weight = torch.randn(k, p, device=device)
    callbacks = [NeuralCollapse(), WeightMeanAlignment(), FeatureSpectrum()]

    def work() -> None:
        observation = _observed(statistics, weight)
        for callback in callbacks:
            callback.measure(observation)
        errors._computed = None
        errors.compute()

    return work


def collapse_metrics(k: int, p: int, device: torch.device | str = "cpu") -> Callable[[], object]:
    statistics, weight = _gathered(k, p, device), torch.randn(k, p, device=device)
    return lambda: NeuralCollapse().measure(_observed(statistics, weight))
