"""Memory that statistics take, measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from nc_callbacks.statistics import state_bytes

SCRIPT = """
import resource, sys
import torch
from nc_callbacks.statistics import ClassStatistics

def peak():
    # Of this program alone: `ru_maxrss` keeps that of the process which started it.
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

def gathered(k, p, covariance):
    statistics = ClassStatistics(k, covariance=covariance)
    statistics.update(torch.randn(2 * k, p), torch.arange(2 * k) % k)
    statistics.settle()
    return statistics

torch.set_num_threads(1)
k, p, covariance = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
gathered(2, 700, covariance).compute()
start = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
statistics = gathered(k, p, covariance)
updated = peak()
moments = statistics.compute()
print(statistics.products.nbytes, updated - start, peak() - start)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("k", "p", "covariance"), [(4, 5120, "pooled"), (100, 512, "per_class")])
def test_compute_takes_little_more_than_its_result(k: int, p: int, covariance: Any) -> None:
    run = subprocess.run([sys.executable, "-c", SCRIPT, str(k), str(p), covariance], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    state, updated, peak = map(int, run.stdout.split())
    assert peak - updated <= 1.5 * state
    # Told beforehand: with the second part of the products, which so few samples may not need.
    assert peak <= state_bytes(k, p, covariance) <= peak + 2 * state
