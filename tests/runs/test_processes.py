"""How many processes a job starts, what they are given, and that none outlives it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nc_callbacks.runs.processes import ProcessError, processes_to_start, run_processes
from nc_callbacks.runs.start import Start
from tests.forked_python import executable

START = Start(script=str(Path(__file__).with_name("rank_script.py")))
VARIABLES = ("LOCAL_RANK", "NODE_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_NTASKS")


def trainer(**given):
    content = {"_target_": "lightning.pytorch.Trainer", "accelerator": "cpu", "devices": 2, "strategy": "ddp"}
    return OmegaConf.create(content | given)


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(sys, "executable", executable())
    for name in ("TORCHELASTIC_RUN_ID", *VARIABLES):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("given", "processes"),
    [
        ({}, 2),
        ({"devices": 3}, 3),
        ({"strategy": "auto"}, 2),
        ({"devices": 1}, 1),
        ({"devices": 1, "strategy": "auto"}, 0),
        ({"devices": "1", "strategy": "auto"}, 0),
        ({"strategy": "ddp_spawn"}, 0),
        ({"num_nodes": 2}, 0),
    ],
)
def test_processes_to_start(given, processes):
    assert processes_to_start(trainer(**given)) == processes
    assert not {"LOCAL_RANK", "MASTER_PORT", "WORLD_SIZE"} & set(os.environ)


def test_processes_to_start_on_a_cluster(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_LOCALID", "0")
    monkeypatch.setenv("SLURM_NODEID", "0")
    assert processes_to_start(trainer()) == 2
    # The cluster has started both.
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "2")
    assert processes_to_start(trainer()) == 0


def test_under_torchrun_the_numbers_must_agree(monkeypatch):
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}.items():
        monkeypatch.setenv(name, value)
    assert processes_to_start(trainer()) == 0
    with pytest.raises(ValueError, match="torchrun has started 2 processes and the trainer wants 1"):
        processes_to_start(trainer(devices=1, strategy="auto"))
    with pytest.raises(ValueError, match="--nproc-per-node 3"):
        processes_to_start(trainer(devices=3))


def config(do):
    # All that is asked of a trainer in a process that torchrun has started; Lightning takes longer to load.
    stand_in = {"_target_": "types.SimpleNamespace", "num_devices": 2, "num_nodes": 1}
    return OmegaConf.create({"do": do, "trainer": stand_in, "lr": 0.1, "twice": "${lr}", "odd": "a=b, {c} \"d\" 'e'"})


def notes(folder):
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def is_alive(pid):
    # A process that has ended stays as a zombie until its parent asks for it.
    status = Path(f"/proc/{pid}/stat")
    return status.is_file() and status.read_text().rsplit(") ", 1)[1][0] != "Z"


@pytest.mark.slow
def test_each_process_gets_the_composed_configuration_and_the_folder(tmp_path):
    folder = tmp_path / "a=b, c"
    folder.mkdir()
    run_processes(config("end"), 2, START, folder, "mine")
    given = notes(folder)
    assert set(given) == {"0", "1"}
    for note in given.values():
        assert note["folder"] == str(folder)
        assert (note["world_size"], note["name"]) == ("2", "mine")
        assert note["config"] == OmegaConf.to_container(config("end"), resolve=True)
    # Neither Hydra's files nor a log.
    assert {path.name for path in folder.iterdir()} == {"0.json", "1.json"}
    assert not set(VARIABLES) & set(os.environ)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("do", "error", "trace"),
    [("raise", "ArithmeticError: rank 1 gave up", "rank_script.py"), ("kill", "A process ended without an", "")],
)
def test_when_one_process_fails_the_others_end(do, error, trace, tmp_path):
    with pytest.raises(ProcessError, match=error) as caught:
        run_processes(config(do), 2, START, tmp_path, "mine")
    assert trace in caught.value.traceback
    assert [is_alive(note["pid"]) for note in notes(tmp_path).values()] == [False, False]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_processes_end_with_the_one_that_started_them(number, tmp_path):
    OmegaConf.save(config("wait"), tmp_path / "given.yaml")
    code = (
        # A shell's background jobs ignore SIGINT, and so would what is started from them.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from omegaconf import OmegaConf; from nc_callbacks.runs.processes import run_processes\n"
        "from nc_callbacks.runs.start import Start\n"
        f"run_processes(OmegaConf.load('{tmp_path}/given.yaml'), 2, {START!r}, '{tmp_path}', 'mine')"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert any("All are there." in line for line in parent.stdout)
    pids = [note["pid"] for note in notes(tmp_path).values()]
    assert [is_alive(pid) for pid in pids] == [True, True]
    try:
        parent.send_signal(number)
        parent.communicate(timeout=300)
        assert parent.returncode != 0
        assert [is_alive(pid) for pid in pids] == [False, False]
    finally:
        # Where the test fails.
        for pid in filter(is_alive, pids):
            os.kill(pid, signal.SIGKILL)
