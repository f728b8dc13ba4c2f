"""Where a main function is found again, whatever pickling has done to its code."""

import importlib.util
import json
import os
import runpy
import subprocess
import sys
import types
from pathlib import Path

import cloudpickle
import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from nc_callbacks.experiments.train import main as training
from nc_callbacks.runs import job as jobs
from nc_callbacks.runs.start import Start, start_of
from tests.forked_python import executable
from tests.processes import ROOT, python
from tests.runs.own_project import make_project


def at_the_top(config):
    """A main function in a module."""


class Data:
    def setup(self):
        """Nothing is to be downloaded."""


@pytest.fixture
def in_main(monkeypatch):
    """A function as if it were defined in `__main__`, with the module's file and spec."""

    def make(file=None, spec=None):
        main = types.ModuleType("__main__")
        main.__spec__ = None if spec is None else types.SimpleNamespace(name=spec)
        if file is not None:
            main.__file__ = file
        monkeypatch.setitem(sys.modules, "__main__", main)
        return types.FunctionType(at_the_top.__code__, {"__name__": "__main__"}, "at_the_top")

    return make


def test_in_a_module():
    start = start_of(at_the_top)
    assert (start.script, start.module, start.function) == ("", __name__, "at_the_top")
    assert set(map(os.path.abspath, sys.path)) == set(start.path)
    assert start_of(training).function == "main"


def test_in_a_script_whose_path_is_relative(in_main, tmp_path, monkeypatch):
    (tmp_path / "my train.py").touch()
    monkeypatch.chdir(tmp_path)
    start = start_of(in_main("my train.py"))
    monkeypatch.chdir("/")
    assert start == Start(script=str(tmp_path / "my train.py"))
    assert start.command(Path("/scratch"))[0] == str(tmp_path / "my train.py")
    # A folder with a __main__.py, which Python gives a spec.
    assert start_of(in_main(str(tmp_path / "my train.py"), "__main__")) == start


def test_under_dash_m(in_main, tmp_path):
    start = start_of(in_main(str(tmp_path / "train.py"), "package.train"))
    assert (start.script, start.module, start.function) == ("", "package.train", "")


def test_nowhere(in_main):
    def inner(config):
        pass

    assert [start_of(task) for task in (inner, lambda config: None)] == [None, None]
    assert start_of(in_main()) is None
    assert start_of(in_main("<stdin>")) is None


@pytest.fixture
def started(monkeypatch, tmp_path):
    """The `Start` that a job of two processes hands on, run in a sweep's folder."""
    given = []
    monkeypatch.setattr(jobs, "run_processes", lambda config, processes, start, folder, name: given.append(start))
    monkeypatch.setattr(jobs, "processes_to_start", lambda trainer: 2)
    hydra = {"runtime": {"output_dir": str(tmp_path)}, "mode": "RUN", "job": {"name": "mine"}}
    monkeypatch.setattr(HydraConfig.instance(), "cfg", OmegaConf.create({"hydra": hydra}))

    def run(task):
        task(OmegaConf.create({"trainer": {}, "data": {"_target_": f"{__name__}.Data"}}))
        return given[-1]

    return run


def test_a_pickled_job_knows_it_in_another_process(started, in_main, tmp_path, monkeypatch):
    script = tmp_path / "train.py"
    script.touch()
    task = jobs.job(in_main(str(script)))
    shipped = cloudpickle.dumps(task)
    # In a launcher's worker `__main__` is another file, and the code says nothing.
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
    there = cloudpickle.loads(shipped)
    there.__wrapped__.__code__ = there.__wrapped__.__code__.replace(co_filename="<dynamic-code>")
    assert started(there) == Start(script=str(script))


def test_a_pickled_job_brings_the_path_of_what_lies_beside_the_script(tmp_path, monkeypatch):
    script = make_project(tmp_path / "my project")
    monkeypatch.setattr(sys, "path", [str(script.parent), *sys.path])
    task = runpy.run_path(str(script), run_name="a_script")["main"].__wrapped__
    shipped = cloudpickle.dumps(task)
    monkeypatch.setattr(sys, "path", sys.path[1:])
    monkeypatch.delitem(sys.modules, "beside")
    there = cloudpickle.loads(shipped)
    assert there.__wrapped__.__globals__["beside"].WORD == "beside"
    assert sys.path[-1] == str(script.parent)
    monkeypatch.delitem(sys.modules, "beside")


def test_what_cannot_be_found_is_refused(started):
    with pytest.raises(ValueError, match=r"wants 2 processes, and they cannot find the main function: expected one at"):
        started(jobs.job(lambda config: None))


def run_worker(start, folder, scratch):
    """What one process does, without the others."""
    scratch.mkdir()
    content = {"hydra": {"run": {"dir": str(folder)}, "output_subdir": None}, "word": "given", "resume": False}
    trainer = {"devices": 1, "strategy": "auto"}
    OmegaConf.save({"defaults": ["_self_"], **content, "trainer": trainer}, scratch / "config.yaml")
    ended = python(*start.command(scratch), folder=scratch, environment=os.environ | {"RANK": "0"})
    assert ended.returncode == 0, ended.stderr
    return (folder / "rank0.txt").read_text().rpartition(" ")[0]


@pytest.mark.parametrize("kind", ["module", "function"])
def test_a_process_finds_it_from_another_folder(kind, tmp_path):
    script = make_project(tmp_path / "my project")
    path = (str(script.parent), str(ROOT))
    start, name = {
        "module": (Start(module="my_train", path=path), "__main__"),
        "function": (Start(module="my_train", function="main", path=path), "my_train"),
    }[kind]
    assert run_worker(start, tmp_path / "run", tmp_path / "elsewhere") == f"beside given {name}"


def test_error_of_a_function_that_is_not_there(tmp_path):
    scratch, error_file = tmp_path / "scratch", tmp_path / "error.json"
    scratch.mkdir()
    command = Start(module="json", function="no_such").command(scratch)
    assert python(*command, environment=os.environ | {"TORCHELASTIC_ERROR_FILE": str(error_file)}).returncode
    assert "has no attribute 'no_such'" in json.loads(error_file.read_text())["message"]["message"]


WAYS = {
    "alone": ["my_train.py"],
    "-m": ["-m", "my_train"],
    # Hydra asks for a package where the function is not in a script.
    "imported": ["-c", "from my_train import main; main()", "--config-path=pkg://nc_callbacks.conf"],
    "sweep": ["my_train.py", "-m", "word=said"],
    "joblib": ["my_train.py", "-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "word=said"],
    "joblib -m": ["-m", "my_train", "-m", "hydra/launcher=joblib", "word=said"],
    "submitit": ["my_train.py", "-m", "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5", "word=said"],
    "chdir": ["my_train.py", "hydra.job.chdir=true"],
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_start_however_the_first_was_started(way, tmp_path):
    plugin = {"joblib": "joblib", "submitit": "submitit"}.get(way.split()[0])
    if plugin and importlib.util.find_spec(f"hydra_plugins.hydra_{plugin}_launcher") is None:
        pytest.skip(f"needs hydra-{plugin}-launcher")
    script = make_project(tmp_path / "my project")
    elsewhere = script.parent if "my_train" in WAYS[way] or way == "imported" else tmp_path
    given = [str(script) if argument == script.name else argument for argument in WAYS[way]]
    command = [*given, "hydra.run.dir=run", "hydra.sweep.dir=run"]
    if way in ("alone", "submitit"):
        # Not forked from what has loaded Lightning; and submitit knows a job by the number of what it has started.
        environment = os.environ | ({"PYTHON_EXEC": executable()} if way == "submitit" else {})
        command = [sys.executable, *command]
        ended = subprocess.run(command, capture_output=True, text=True, cwd=elsewhere, env=environment)
    else:
        ended = python(*command, folder=elsewhere)
    assert ended.returncode == 0, ended.stderr
    left = sorted(path.relative_to(elsewhere / "run") for path in (elsewhere / "run").rglob("rank*.txt"))
    job = "0" if "-m" in WAYS[way][1:] else ""
    assert left == [Path(job, f"rank{rank}.txt") for rank in (0, 1)], ended.stdout
    name = "my_train" if way == "imported" else "__main__"
    written = {(elsewhere / "run" / path).read_text() for path in left}
    assert {text.rpartition(" ")[0] for text in written} == {f"beside said {name}"}
    if way == "alone":
        assert {text.rpartition(" ")[2] for text in written} == {"False"}
