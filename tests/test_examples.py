"""The examples run and print numbers that make sense."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_runs_and_collapses(name):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent)}
    run = subprocess.run(
        [sys.executable, EXAMPLES / name], env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-2000:]
    values = [float(value) for value in re.findall(r"nc1 ([\d.]+)", run.stdout)]
    assert len(values) == 5
    assert values[-1] < values[0]
    if "fabric" in name:
        assert run.stdout.count("801 samples") == 5
