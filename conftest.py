"""What all tests take for granted: one thread a process, no account, and the names in docstrings' examples."""

import functools
import gc
import importlib.metadata
import logging
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
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


def pytest_xdist_setupnodes(specs: Sequence[Any]) -> None:
    """Both are forked from one process, which imports what the tests need once for all."""
    from tests.forked_python import SHARED, executable

    os.environ[SHARED] = executable()
    for spec in specs:
        spec.python = shlex.quote(executable())


def pytest_configure_node(node: Any) -> None:
    """A test that asks for Python gets the real one."""
    node.workerinput["python"] = sys.executable


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        sys.executable = config.workerinput["python"]
        # As where they are imported when pytest already listens: some versions keep to themselves what nobody hears.
        for name in ("lightning.fabric", "lightning.pytorch", "lightning_fabric", "pytorch_lightning"):
            logging.getLogger(name).propagate = True


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """What is there by now stays; without this, each search for garbage goes through half a million objects."""
    gc.freeze()


def pytest_unconfigure() -> None:
    """Nor is it taken apart, piece by piece, at the end."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _packages_are_listed_once() -> Iterator[None]:
    """Each trainer asks all installed packages for callbacks, which takes as long as all else that makes one."""
    with pytest.MonkeyPatch.context() as patch:
        listed = functools.cache(importlib.metadata.entry_points)
        # Other versions may list them otherwise.
        patch.setattr("lightning.fabric.utilities.registry.entry_points", listed, raising=False)
        yield


@pytest.fixture(autouse=True)
def _names_in_examples(doctest_namespace: dict[str, Any]) -> None:
    import torch

    doctest_namespace["torch"] = torch
