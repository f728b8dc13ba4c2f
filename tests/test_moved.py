"""Old import paths give the modules of today, and say where they are."""

import importlib
import re
import sys
from pathlib import Path

import pytest
from hydra.utils import instantiate

import nc_callbacks
from nc_callbacks._moved import MOVED, MovedFinder, install
from nc_callbacks.callbacks.look_recorder import LookRecorder

ROOT = Path(__file__).parents[1]


def forget(name):
    """As if it had not been imported by its old name."""
    sys.modules.pop(name, None)
    parent, _, child = name.rpartition(".")
    vars(sys.modules.get(parent, nc_callbacks)).pop(child, None)


@pytest.mark.parametrize("old", [old for old, new in MOVED.items() if " " not in new])
def test_an_old_path_is_the_new_module(old):
    old, new = f"nc_callbacks.{old}", f"nc_callbacks.{MOVED[old]}"
    expected = importlib.import_module(new)
    spec = expected.__spec__
    forget(old)
    with pytest.warns(DeprecationWarning, match=f"^{re.escape(f'{old} is now {new}.')}$") as caught:
        found = importlib.import_module(old)
    assert caught[0].filename != nc_callbacks._moved.__file__
    assert found is expected is sys.modules[new]
    assert (found.__name__, found.__spec__) == (new, spec)
    forget(old)


def test_an_old_path_whose_names_have_two_homes():
    forget("nc_callbacks.callbacks.observation")
    message = (
        "nc_callbacks.callbacks.observation is now nc_callbacks.engine.observation and nc_callbacks.engine.request"
    )
    with pytest.warns(DeprecationWarning, match=message):
        from nc_callbacks.callbacks.observation import Needs, Observation
    assert Needs.__module__ == "nc_callbacks.engine.request"
    assert Observation.__module__ == "nc_callbacks.engine.observation"


def test_names_of_old_paths_from_statements():
    forget("nc_callbacks.heads")
    with pytest.warns(DeprecationWarning, match=r"nc_callbacks\.heads is now nc_callbacks\.transfer\.head") as caught:
        from nc_callbacks.heads import CentredMeanHead
    assert caught[0].filename == __file__
    assert CentredMeanHead is nc_callbacks.CentredMeanHead


def test_target_in_the_configuration_of_an_old_run(tmp_path):
    forget("nc_callbacks.experiments.looks")
    with pytest.warns(DeprecationWarning, match="look_recorder"):
        made = instantiate({"_target_": "nc_callbacks.experiments.looks.LookRecorder", "folder": str(tmp_path)})
    assert type(made) is LookRecorder


def test_only_what_has_moved_is_found():
    assert MovedFinder().find_spec("nc_callbacks.statistics", None) is None
    assert MovedFinder().find_spec("heads", None) is None
    install()
    assert sum(isinstance(finder, MovedFinder) for finder in sys.meta_path) == 1
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("nc_callbacks.nowhere")


def test_the_package_itself_uses_no_old_path():
    pattern = re.compile(rf"nc_callbacks\.({'|'.join(map(re.escape, MOVED))})\b(?!\.yaml)")
    for path in (ROOT / "nc_callbacks").rglob("*"):
        if path.suffix in (".py", ".yaml"):
            assert not pattern.search(path.read_text()), path
