"""What `import nc_callbacks` gives, what it must not drag in, and what is in the wheel."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import nc_callbacks

ROOT = Path(__file__).parents[1]

# Lightning and torchmetrics import matplotlib and torchvision where these are installed, so what counts is who asks.
RECORD_IMPORTS = """
import builtins, json, sys
asked, original = set(), builtins.__import__
def record(name, globals=None, locals=None, fromlist=(), level=0):
    if globals and str(globals.get("__name__")).startswith("nc_callbacks"):
        asked.add(name.split(".")[0])
    return original(name, globals, locals, fromlist, level)
builtins.__import__ = record
import nc_callbacks
bare = sorted(sys.modules)
import nc_callbacks.functional, nc_callbacks.statistics, nc_callbacks.metrics
functions = sorted(sys.modules)
from nc_callbacks import *
print(json.dumps([bare, functions, sorted(asked), sorted(sys.modules)]))
"""


@pytest.mark.slow
def test_imports():
    run = subprocess.run([sys.executable, "-c", RECORD_IMPORTS], capture_output=True, text=True, check=True)
    bare, functions, asked, loaded = map(set, json.loads(run.stdout))
    assert not bare & {"torch", "lightning", "torchmetrics", "numpy"}
    assert "torchmetrics" in functions
    assert not functions & {"lightning", "lightning.pytorch", "lightning.fabric", "pytorch_lightning"}
    assert {"torch", "lightning", "torchmetrics", "jaxtyping"} <= asked
    assert not asked & {"hydra", "omegaconf", "wandb", "matplotlib", "torchvision", "sklearn", "rich"}
    assert not loaded & {"hydra", "omegaconf", "wandb", "sklearn"}


def test_public_names_are_there_and_known_before_they_load():
    values = [getattr(nc_callbacks, name) for name in nc_callbacks.__all__]
    assert [value.__name__ for value in values] == nc_callbacks.__all__
    assert {*nc_callbacks.__all__, "__version__"} <= set(dir(nc_callbacks))
    assert nc_callbacks.functional.nc1.__module__.startswith("nc_callbacks.functional")
    with pytest.raises(AttributeError, match="module 'nc_callbacks' has no attribute 'NeuralColapse'"):
        _ = nc_callbacks.NeuralColapse


def test_version():
    assert nc_callbacks.__version__ == importlib.metadata.version("nc-callbacks")


def test_types_of_the_public_names_are_those_of_their_homes():
    """Type checkers read the imports under TYPE_CHECKING; running code reads the table."""
    import ast

    tree = ast.parse((ROOT / "nc_callbacks" / "__init__.py").read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    read = {name.name: node.module for node in guarded.body if isinstance(node, ast.ImportFrom) for name in node.names}
    assert sorted(read) == nc_callbacks.__all__
    for name, module in read.items():
        assert getattr(importlib.import_module(module), name) is getattr(nc_callbacks, name)


def test_wheel_holds_more_than_python():
    pytest.importorskip("hatchling")
    from hatchling.builders.wheel import WheelBuilder

    builder = WheelBuilder(str(ROOT))
    files = {file.distribution_path for file in builder.recurse_included_files()}
    conf = {path.relative_to(ROOT).as_posix() for path in (ROOT / "nc_callbacks" / "conf").rglob("*.yaml")}
    assert len(conf) > 40
    assert conf | {"nc_callbacks/py.typed", "nc_callbacks/report/assets/page.html"} <= files
    assert not [name for name in files if not name.startswith("nc_callbacks/")]
    assert builder.metadata.core.scripts == {"nc-callbacks": "nc_callbacks.__main__:main"}


IMPORT_TIMES = """
import time
start = time.process_time()
import jaxtyping, lightning.pytorch, torch, torchmetrics
others = time.process_time()
from nc_callbacks import FeatureSpectrum, NeuralCollapse, QuasiInterpolation, WeightMeanAlignment
print(others - start, time.process_time() - others)
"""


@pytest.mark.slow
def test_import_takes_little_beside_torch_and_lightning():
    """100 ms, where these take their 3 s or more; as much more on a machine that is slower or busy."""
    # Compiled once, as an installed package is.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", IMPORT_TIMES]
    times = []
    for _ in range(2):
        run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=ROOT)
        times.append([float(value) for value in run.stdout.split()])
    assert min(own / max(others, 3) for others, own in times) <= 0.1 / 3, times


def test_what_is_published_is_small(tmp_path):
    pytest.importorskip("hatchling")
    from hatchling.builders.sdist import SdistBuilder
    from hatchling.builders.wheel import WheelBuilder

    wheel = next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"]))
    assert Path(wheel).stat().st_size < 1.5e6
    sdist = {file.relative_path for file in SdistBuilder(str(ROOT)).recurse_included_files()}
    for name in (
        "tests/processes.py",
        "docs/metrics.md",
        "examples/my_model.py",
        "mkdocs.yml",
        "conftest.py",
        "CITATION.cff",
    ):
        assert name in sdist, name
