"""Each block of code of the pages runs as it is printed."""

import os
import re
import shlex

import pytest
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser

from tests.docs.common import PAGES, blocks, pasted
from tests.processes import ROOT, python

HOW_TO = [page for page in PAGES if page.parent.name == "howto"]
# The block of early_stopping.md runs in tests/test_early_stopping.py.
OTHERS = [ROOT / "docs" / f"{name}.md" for name in ("index", "conventions", "depth", "unbalanced", "outside")]
PYTHON = {f"{page.stem}-{i}": block for page in [*HOW_TO, *OTHERS] for i, block in enumerate(blocks(page, "python"))}
STARTED = {name: block for name, block in PYTHON.items() if "spawn" in block or "CLI" in block}
BASH = [line for page in PAGES for block in blocks(page, "bash") for line in block.splitlines()]
TRAIN = sorted({line for line in BASH if "train.py" in line})


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PYTHON.keys() - STARTED.keys()))
def test_python_runs_pasted_into_a_file(name, tmp_path):
    assert "nan" not in pasted(PYTHON[name], tmp_path)


@pytest.mark.slow
def test_several_processes(tmp_path):
    (block,) = (block for block in STARTED.values() if "spawn" in block)
    (tmp_path / "spawned.py").write_text(block)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    run = python(tmp_path / "spawned.py", folder=tmp_path, environment=os.environ | {"PYTHONPATH": path})
    assert run.returncode == 0, run.stderr
    assert float(run.stdout.split()[-1]) > 0


@pytest.mark.slow
def test_lightning_cli(tmp_path):
    pytest.importorskip("jsonargparse", reason="needs jsonargparse (pip install 'jsonargparse[signatures]')")
    page = ROOT / "docs" / "howto" / "lightning_cli.md"
    (tmp_path / "config.yaml").write_text(*blocks(page, "yaml"))
    pasted(*blocks(page, "python"), tmp_path, "fit", "--config", "config.yaml")
    assert (tmp_path / "runs" / "cli" / "report.html").is_file()


def test_there_is_something_to_run():
    assert len(PYTHON) >= 12
    assert len(TRAIN) >= 12


@pytest.mark.slow
def test_choices_of_the_training_script_are_there():
    with initialize_config_module("nc_callbacks.conf", version_base="1.3"):
        for line in TRAIN:
            assert compose("train", chosen(line)), line


def chosen(line):
    """Overrides of the first run of a command; Hydra's own are left out."""
    given = []
    words = [word for word in shlex.split(line.partition("train.py")[2]) if word not in ("-m", "&")]
    for override in OverridesParser.create().parse_overrides(words):
        first = next(override.sweep_string_iterator()) if override.is_sweep_override() else None
        if not override.is_hydra_override():
            given.append(override.input_line if first is None else f"{override.key_or_group}={first}")
    return given


def test_commands_and_extras_are_there():
    project = (ROOT / "pyproject.toml").read_text()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for extras in re.findall(r'pip install (?:-e )?"?\.?\w*\[([\w,]+)\]', text):
            for extra in extras.split(","):
                assert extra == "signatures" or re.search(rf"^{extra} = \[", project, re.MULTILINE), (page.name, extra)
        for name in re.findall(r"`((?:examples|benchmarks)/\w+\.py)`", text):
            assert (ROOT / name).is_file(), (page.name, name)
