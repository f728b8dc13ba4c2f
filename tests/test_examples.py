"""The examples run and print numbers that make sense."""

import re

import pytest

from tests.processes import ROOT, python

EXAMPLES = ROOT / "examples"


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_runs_and_collapses(name):
    run = python(EXAMPLES / name)
    assert run.returncode == 0, run.stderr[-2000:]
    values = [float(value) for value in re.findall(r"nc1 ([\d.]+)", run.stdout)]
    assert len(values) == 5
    assert values[-1] < values[0]
    if "fabric" in name:
        assert run.stdout.count("801 samples") == 5
