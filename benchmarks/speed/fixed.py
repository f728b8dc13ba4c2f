"""An update with one thread and with two, idle and beside a busy process, and `nc4` of a batch, by CPU time.

`python benchmarks/run.py --only fixed`: CPU time of all threads, the least of several turns.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

import nc_callbacks.functional as F_nc
from speed.measure import Options, Row, batch, by_cpu_time, threads_of
from speed.updates import product, updating


def rows(options: Options) -> Iterator[Row]:
    if options.device.type != "cpu":
        return
    with threads_of(1):
        for k in (10, 100, 1_000):
            yield _nc4(options, k)
    for threads in (1, 2):
        with threads_of(threads):
            for busy in (False, True):
                for k in (10, 1_000):
                    yield _update(options, k, busy)


def _nc4(options: Options, k: int) -> Row:
    """The product gives the scores of both, the classifier and the nearest class mean."""
    p, n = 512, 1_000
    x, _ = batch(n, p, k)
    generator = torch.Generator().manual_seed(0)
    weight, means = torch.randn(k, p, generator=generator), torch.randn(k, p, generator=generator).double()
    both = torch.cat([weight, means.float()])
    pair = by_cpu_time(lambda: F_nc.nc4(x, weight, means), lambda: x @ both.T, options)
    return Row("nc4 of a batch / one product", f"p = {p}, k = {k:,}, n = {n:,}", pair.ratio, "×", 1.05, str(pair))


def _update(options: Options, k: int, busy: bool) -> Row:
    p, n = 512, 1_000
    x, y = batch(n, p, k)
    with _busy() if busy else _idle():
        pair = by_cpu_time(updating(k, x, y, "pooled"), product(x), options, turn=0.05)
    group = f"update / XᵀX{', beside a busy process' if busy else ''}"
    threads = f"{torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
    return Row(group, f"p = {p}, k = {k:,}, n = {n:,}, {threads}", pair.ratio, "×", 1.3, str(pair))


@contextmanager
def _busy() -> Iterator[None]:
    """Another process that uses a core."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def _idle() -> Iterator[None]:
    yield
