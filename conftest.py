"""What all tests take for granted: one thread a process, no account, and the names in docstrings' examples."""

import os
from typing import Any

import pytest

# Before torch is imported, here and in the processes that tests start.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ.setdefault("WANDB_MODE", "offline")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two processes; for tests of one file, which share their fixtures, the one that there is."""
    files = [name for name in config.args if name.partition("::")[0].endswith(".py")]
    return 0 if len(files) == len(config.args) == 1 else 2


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _names_in_examples(doctest_namespace: dict[str, Any]) -> None:
    import torch

    doctest_namespace["torch"] = torch
