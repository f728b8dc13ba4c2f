"""Two and three gloo processes find what one finds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def found(processes, folder, feature_cache="512MiB"):
    file = folder / f"{processes}.pt"
    command = [sys.executable, "-m", "tests.callbacks.ranks_script", str(processes), str(file), feature_cache]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    return torch.load(file, weights_only=True)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return found(1, tmp_path_factory.mktemp("one"))


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "feature_cache"), [(2, "512MiB"), (3, "0")])
def test_ranks_find_what_one_process_finds(one, processes, feature_cache, tmp_path):
    for single, several in zip(one, found(processes, tmp_path, feature_cache), strict=True):
        assert single.keys() == several.keys()
        for key, value in single.items():
            if key == "step":
                continue
            tolerance = {"rtol": 1e-4, "atol": 1e-6} if "implicit" in key else {"rtol": 1e-5, "atol": 1e-7}
            expected, value = (torch.as_tensor(v, dtype=torch.float64) for v in (value, several[key]))
            torch.testing.assert_close(
                value, expected, equal_nan=True, **tolerance, msg=lambda m, key=key: f"{key}: {m}"
            )
