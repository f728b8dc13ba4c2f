"""How the rows are measured: pairs of timings in turns, their median ratio, and peaks of memory."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    device: torch.device
    quick: bool
    """Fewer pairs and smaller sizes: does everything run, and roughly how fast?"""
    threads: int
    fashion_mnist: Path | None = None
    """Folder of its files, for the rows that train on images."""

    @property
    def pairs(self) -> int:
        return 5 if self.quick else 15


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    group: str
    what: str
    measured: float
    unit: str
    """What `measured` and `goal` are in; "×" for a ratio to the limit."""
    goal: float | None
    """At most this; None for a line that is there for comparison."""
    detail: str = ""

    @property
    def met(self) -> bool | None:
        return None if self.goal is None else self.measured <= self.goal


@dataclass(frozen=True)
class Pair:
    ours: float
    limit: float
    ratio: float
    """Median of the ratios of the pairs, each taken within the same moment, or the ratio of the least of each."""

    def __str__(self) -> str:
        return f"{scaled(self.ours)} against {scaled(self.limit)}"


def scaled(seconds: float) -> str:
    for size, unit in ((1, "s"), (1e-3, "ms")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def seconds(function: Callable[[], object], device: torch.device, repeats: int = 1) -> float:
    """Of one call, over `repeats` in a row."""
    wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    wait(device)
    return (time.perf_counter() - start) / repeats


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(ours: Callable[[], object], limit: Callable[[], object], options: Options) -> Pair:
    """Both in turns, each turn long enough for the clock."""
    for function in (ours, limit):
        seconds(function, options.device, 2)
    repeats = [max(1, int(0.02 / max(seconds(f, options.device), 1e-6))) for f in (ours, limit)]
    turns = [
        [seconds(f, options.device, r) for f, r in zip((ours, limit), repeats, strict=True)]
        for _ in range(options.pairs)
    ]
    return Pair(*(median(column) for column in zip(*turns, strict=True)), median(a / b for a, b in turns))


def cpu_seconds(function: Callable[[], object], repeats: int = 1) -> float:
    """Of all threads of this process in one call, over `repeats` in a row, whatever others take of the cores."""
    start = time.process_time()
    for _ in range(repeats):
        function()
    return (time.process_time() - start) / repeats


def by_cpu_time(ours: Callable[[], object], limit: Callable[[], object], options: Options, turn: float = 0.02) -> Pair:
    """Both in turns of about so many seconds; the least of each."""
    for function in (ours, limit):
        cpu_seconds(function)
    repeats = [max(1, int(turn / max(cpu_seconds(f), 1e-6))) for f in (ours, limit)]
    turns = [[cpu_seconds(f, r) for f, r in zip((ours, limit), repeats, strict=True)] for _ in range(options.pairs)]
    least = [min(column) for column in zip(*turns, strict=True)]
    return Pair(*least, least[0] / least[1])


@contextmanager
def threads_of(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_fresh_process(function: Callable[..., T], *arguments: Any) -> T:
    """The result of a call by a process that has done nothing before."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def peak_memory(function: Callable[..., Callable[[], object]], *arguments: Any) -> float:
    """GiB that a fresh process takes at most while it does the work that `function` prepares (Linux, CPU)."""
    return in_fresh_process(_peak, function, arguments)


def _peak(function: Callable[..., Callable[[], object]], arguments: tuple[Any, ...]) -> float:
    work = function(*arguments)
    # Sets the peak back to what is in use.
    Path("/proc/self/clear_refs").write_text("5")
    before = status_kib("VmHWM")
    work()
    return (status_kib("VmHWM") - before) / 2**20


def status_kib(name: str) -> int:
    """An entry of this process's status, such as VmRSS (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def batch(n: int, p: int, k: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Features around random class means, as a network's are, and targets."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(k, (n,), generator=generator)
    means = torch.randn(k, p, generator=generator)
    return (means[targets] + torch.randn(n, p, generator=generator)).to(device), targets.to(device)
