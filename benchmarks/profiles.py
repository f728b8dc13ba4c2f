"""The costliest operations of an update and of all metrics: `python benchmarks/profiles.py [--threads 1]`."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from speed.measure import batch
from torch.profiler import ProfilerActivity, profile

from nc_callbacks import ClassStatistics

CASES = (
    ("pooled", 512, 100, 512),
    ("pooled", 64, 10, 128),
    ("none", 2048, 1000, 1024),
    ("per_class", 512, 100, 1000),
)
UPDATES = 32


def updates(covariance: str, p: int, k: int, n: int) -> Callable[[], object]:
    x, y = batch(n, p, k)
    statistics = ClassStatistics(k, covariance=covariance)
    statistics.update(x, y)
    return lambda: [statistics.update(x, y) for _ in range(UPDATES)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    torch.set_num_threads(parser.parse_args().threads)
    print("| update | operations: µs an update, number |\n| --- | --- |")
    for covariance, p, k, n in CASES:
        work = updates(covariance, p, k, n)
        work()
        with profile(activities=[ProfilerActivity.CPU]) as found:
            work()
        events = sorted(found.key_averages(), key=lambda event: -event.self_cpu_time_total)
        total = sum(event.self_cpu_time_total for event in events) / UPDATES
        costs = [f"{e.key.removeprefix('aten::')} {e.self_cpu_time_total / UPDATES:,.0f}" for e in events[:5]]
        number = sum(event.count for event in events) / UPDATES
        print(
            f"| {covariance}, p = {p:,}, k = {k:,}, n = {n:,} | {', '.join(costs)}; all {total:,.0f} ({number:.0f}) |"
        )


if __name__ == "__main__":
    main()
