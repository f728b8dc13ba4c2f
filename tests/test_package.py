"""What `import nc_callbacks` gives and what it must not drag in."""

import json
import subprocess
import sys

import nc_callbacks

# Lightning and torchmetrics import matplotlib and torchvision where these are installed, so what counts is who asks.
RECORD_IMPORTS = """
import builtins, json, sys
asked, original = set(), builtins.__import__
def record(name, globals=None, *rest):
    if globals and str(globals.get("__name__")).startswith("nc_callbacks"):
        asked.add(name.split(".")[0])
    return original(name, globals, *rest)
builtins.__import__ = record
import nc_callbacks, nc_callbacks.functional
print(json.dumps([sorted(asked), sorted(sys.modules)]))
"""


def test_import_does_not_import_what_only_experiments_need():
    run = subprocess.run([sys.executable, "-c", RECORD_IMPORTS], capture_output=True, text=True, check=True)
    asked, loaded = map(set, json.loads(run.stdout))
    assert {"torch", "lightning", "torchmetrics", "jaxtyping"} <= asked
    assert not asked & {"hydra", "omegaconf", "wandb", "matplotlib", "torchvision", "sklearn", "rich"}
    assert not loaded & {"hydra", "omegaconf", "wandb", "sklearn"}


def test_public_names_are_there():
    assert all(hasattr(nc_callbacks, name) for name in nc_callbacks.__all__)
