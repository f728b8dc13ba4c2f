"""Sweeps started as a user starts them, and what they leave."""

import csv
import os
import subprocess
import uuid
from contextlib import suppress
from pathlib import Path
from select import select

from tests.forked_python import executable
from tests.processes import ROOT, python

QUICK = [
    "model=mlp",
    "trainer.max_epochs=2",
    "callbacks=neural_collapse",
    "callbacks.neural_collapse.figures=false",
    "+trainer.enable_checkpointing=false",
]


def run(cwd, *arguments, start=None):
    """Runs the training script, and sees to it that no process of it is left.

    Args:
        cwd: Where.
        *arguments: Of the script.
        start: What runs it instead of a forked Python. Ranks of torchrun are forked then, too.
    """
    mark = uuid.uuid4().hex
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "STARTED_BY": mark}
    command = [str(ROOT / "train.py"), *arguments]
    if start is None:
        ended = python(*command, folder=cwd, environment=environment)
    else:
        command = [*start, *command]
        environment |= {"PYTHON_EXEC": executable()}
        ended = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=600)
    # A worker of joblib ends a moment after the process that it works for.
    for number in left_over(mark):
        with suppress(ProcessLookupError), os.fdopen(os.pidfd_open(number)) as process:
            select([process], [], [], 300)
    assert left_over(mark) == {}
    return ended


def left_over(mark):
    """Commands by process, of those started with the mark."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes():
                found[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ")
        except OSError:
            continue
    return found


def rows(folder):
    with open(folder / "sweep.csv", newline="") as file:
        return list(csv.DictReader(file))


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


HYDRA_FILES = [".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml"]
LEFT_BY_ALL = [
    *HYDRA_FILES,
    "data.json",
    "hparams.yaml",
    "looks.npz",
    "metrics.csv",
    "report.html",
    "summary.json",
    "train.log",
]
RUN_FILES = [*LEFT_BY_ALL, "figures/summary.png"]
