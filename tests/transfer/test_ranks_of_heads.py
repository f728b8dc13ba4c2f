"""Two and three gloo processes fit the head, the scale and the ranking that one fits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.transfer.ranks_of_heads import find

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_ranks_find_what_one_process_finds(processes, tmp_path):
    command = [sys.executable, "-m", "tests.transfer.ranks_of_heads", str(processes), str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr[-3000:]
    one = find()
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(processes)]
    for several in found:
        assert several.keys() == one.keys()
        for name, expected in one.items():
            torch.testing.assert_close(several[name], expected, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
            assert torch.equal(several[name], found[0][name])
