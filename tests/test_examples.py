"""The examples run and print numbers that make sense."""

import re

import pytest

from tests.processes import ROOT, python

EXAMPLES = ROOT / "examples"

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py") if "incremental" not in path.name))
def test_runs_and_collapses(name):
    run = python(EXAMPLES / name)
    assert run.returncode == 0, run.stderr[-2000:]
    values = [float(value) for value in re.findall(r"nc1 ([\d.]+)", run.stdout)]
    assert len(values) == 5
    assert values[-1] < values[0]
    if "fabric" in name:
        assert run.stdout.count("801 samples") == 5


def test_classes_that_come_one_by_one_are_learned_as_well_as_at_once():
    run = python(EXAMPLES / "class_incremental.py")
    assert run.returncode == 0, run.stderr[-2000:]
    *incremental, at_once = [float(value) for value in re.findall(r"accuracy ([\d.]+)", run.stdout)]
    assert len(incremental) == 9
    assert incremental[-1] >= at_once - 0.01 > 0.9
