"""The notebook's cells run in order, and its last numbers are those that its text tells of."""

import json
import os
import re

import pytest

from tests.processes import ROOT, python

NOTEBOOK = json.loads((ROOT / "examples" / "collapse.ipynb").read_text(encoding="utf-8"))


def test_is_kept_without_outputs():
    code = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert len(code) >= 5
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)


@pytest.mark.slow
def test_runs_from_training_to_a_whitened_head(tmp_path):
    cells = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    (tmp_path / "cells.py").write_text("\n".join(cells), encoding="utf-8")
    run = python(tmp_path / "cells.py", folder=tmp_path, environment=os.environ | {"MPLBACKEND": "Agg"})
    assert run.returncode == 0, run.stderr
    centred, whitened = (float(value) for value in re.findall(r"accuracy ([\d.]+)", run.stdout))
    assert whitened > centred + 0.1
    nc1 = [float(value) for value in re.findall(r"nc1 ([\d.]+)", run.stdout)]
    assert nc1[-1] < nc1[0]
