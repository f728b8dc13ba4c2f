"""`ClassStatistics.update` beside what it cannot be faster than."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from nc_callbacks import ClassStatistics
from speed import textbook
from speed.measure import Options, Row, batch, interleaved, peak_memory, scaled


def rows(options: Options) -> Iterator[Row]:
    sizes = [(512, 10, 512), (512, 100, 512), (512, 1000, 512), (512, 100, 1024), (2048, 1000, 512)]
    for p, k, n in sizes:
        yield _beside_product(options, p, k, n, 1.3)
    for k in (10, 1000):
        yield _beside_product(options, 512, k, 128, 2)
    yield _small(options)
    for k in (10, 100, 1000):
        yield _beside_reading(options, k)
        yield from _operations(options, k)
    yield _per_class(options)
    yield from _textbook(options)


def updating(k: int, x: Tensor, y: Tensor, covariance: Any) -> Callable[[], None]:
    """An update after the first, which sets the shift."""
    statistics = ClassStatistics(k, covariance=covariance).to(x.device)
    statistics.update(x, y)
    return lambda: statistics.update(x, y)


def product(x: Tensor) -> Callable[[], Tensor]:
    total = x.new_zeros(x.shape[1], x.shape[1])
    return lambda: total.addmm_(x.T, x)


def _beside_product(options: Options, p: int, k: int, n: int, goal: float) -> Row:
    x, y = batch(n, p, k, options.device)
    pair = interleaved(updating(k, x, y, "pooled"), product(x), options)
    return Row("update, pooled / XᵀX", f"p = {p:,}, k = {k:,}, n = {n:,}", pair.ratio, "×", goal, str(pair))


def _small(options: Options) -> Row:
    x, y = batch(128, 64, 10, options.device)
    pair = interleaved(updating(10, x, y, "pooled"), product(x), options)
    detail = f"a product alone takes {scaled(pair.limit)}"
    return Row("update, pooled", "p = 64, k = 10, n = 128", pair.ours * 1e6, "µs", 60, detail)


def _beside_reading(options: Options, k: int) -> Row:
    x, y = batch(1024, 2048, k, options.device)
    pair = interleaved(updating(k, x, y, "none"), lambda: x.sum(0), options)
    return Row('update, "none" / X.sum(0)', f"p = 2,048, k = {k:,}, n = 1,024", pair.ratio, "×", 3, str(pair))


def _operations(options: Options, k: int) -> Iterator[Row]:
    """What the five operations of "none" that go through the whole batch take without anything around them."""
    x, y = batch(1024, 2048, k, options.device)
    shift, sums, d = x.new_zeros(k, 2048), x.new_zeros(k, 2048), torch.empty_like(x)
    operations: dict[str, Callable[[], object]] = {
        "gather": lambda: torch.index_select(shift, 0, y, out=d),
        "subtract": lambda: torch.sub(x, d, out=d),
        "norms": lambda: torch.linalg.vector_norm(d, dim=1),
        "sums": lambda: d.sum(1),
        "add to classes": lambda: sums.index_add_(0, y, d),
    }

    def reading() -> Tensor:
        return x.sum(0)

    alone = {name: interleaved(operation, reading, options) for name, operation in operations.items()}
    detail = ", ".join(f"{name} {scaled(pair.ours)}" for name, pair in alone.items())
    what = f"p = 2,048, k = {k:,}, n = 1,024"
    repeated = sum(pair.ratio for pair in alone.values())
    yield Row("its five operations, each repeated / X.sum(0)", what, repeated, "×", None, detail)
    # Adding to classes reads rows that another thread has just written; the other four keep to their rows.
    some = {"the four without adding to classes, in turns": 4, "all five, in turns": 5}
    for group, number in some.items():
        chosen = list(operations.values())[:number]
        pair = interleaved(lambda chosen=chosen: [operation() for operation in chosen], reading, options)
        yield Row(f"{group} / X.sum(0)", what, pair.ratio, "×", None, str(pair))


def _per_class(options: Options) -> Row:
    x, y = batch(1000, 512, 100, options.device)
    several = [updating(100, x, y, covariance) for covariance in ("per_class", "pooled")]
    # Rows wait over a few updates: a turn is as many as are multiplied together.
    turns = [lambda update=update: [update() for _ in range(16)] for update in several]
    pair = interleaved(*turns, options)
    what = "p = 512, k = 100, n = 1,000, 16 updates"
    return Row("update, per class / pooled", what, pair.ratio, "×", 2.5, str(pair))


def _streamed(batches: list[tuple[Tensor, Tensor]], k: int) -> Tensor:
    statistics = ClassStatistics(k).to(batches[0][0].device)
    for features, targets in batches:
        statistics.update(features, targets)
    within = statistics.compute().within
    assert within is not None
    return within


def _batches(k: int, n: int, device: torch.device | str = "cpu") -> list[tuple[Tensor, Tensor]]:
    x, y = batch(n, 512, k, device)
    return list(zip(x.split(512), y.split(512), strict=True))


def streamed_work(k: int, n: int) -> Callable[[], object]:
    batches = _batches(k, n)
    return lambda: _streamed(batches, k)


def textbook_work(k: int, n: int) -> Callable[[], object]:
    batches = _batches(k, n)
    return lambda: textbook.moments(batches, k)


def _textbook(options: Options) -> Iterator[Row]:
    for k in (10,) if options.quick else (10, 100):
        n = 1024 if options.quick else 5120
        batches = _batches(k, n, options.device)
        pair = interleaved(
            lambda b=batches, k=k: _streamed(b, k), lambda b=batches, k=k: textbook.moments(b, k), options
        )
        what = f"p = 512, k = {k}, n = {n:,}"
        yield Row("whole pass / textbook's two passes", what, pair.ratio, "×", 1, str(pair))
        if options.device.type == "cpu":
            ours, theirs = (peak_memory(work, k, n) for work in (streamed_work, textbook_work))
            yield Row("peak memory of the pass", what, ours * 1024, "MiB", theirs * 1024, "goal: the textbook's")
