"""Jobs on several processes: one torchrun a job, which gets the composed configuration and the folder.

Lightning starts the further ranks with the command line of the first, so that under ``--multirun`` each of them would
run the whole sweep again, and it leaves its variables and its process group behind for the next job.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from torch.distributed.rendezvous import rendezvous

from nc_callbacks.runs.start import CONFIG_NAME, Start

FOLDER_KEY = "nc_callbacks/folder"


class ProcessError(RuntimeError):
    """A process of a job has failed.

    Args:
        error: Of the process that failed first.
        traceback: Of the same.
    """

    def __init__(self, error: str, traceback: str) -> None:
        super().__init__(error)
        self.traceback = traceback


def started_by_torchrun() -> bool:
    """Whether torchrun has started this process."""
    return torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()


def processes_to_start(trainer: DictConfig) -> int:
    """How many processes a job has to start; 0 where this one is enough, or where it is one of those started.

    Args:
        trainer: Configuration of a `lightning.pytorch.Trainer`.

    Raises:
        ValueError: torchrun has started another number of processes than the trainer wants.
    """
    by_torchrun = started_by_torchrun()
    if not by_torchrun and trainer.get("devices") == 1 and trainer.get("strategy", "auto") == "auto":
        return 0
    with _silent():
        made = instantiate(trainer, logger=False, callbacks=None)
    if by_torchrun:
        started, wanted = int(os.environ["WORLD_SIZE"]), made.num_devices * made.num_nodes
        if started != wanted:
            raise ValueError(
                f"torchrun has started {started} processes and the trainer wants {wanted}: give torchrun "
                f"--nproc-per-node {made.num_devices}, or the trainer trainer.devices (with trainer=ddp or ddp_cpu)."
            )
        return 0
    from nc_callbacks.engine.trainer import starts_scripts

    if made.num_nodes > 1 or not starts_scripts(made):
        return 0
    environment = made.strategy.cluster_environment
    # A single task of a cluster's job may have been given several devices.
    are_started = environment.creates_processes_externally and environment.world_size() > 1
    return 0 if are_started else made.num_devices


def run_processes(config: DictConfig, processes: int, start: Start, folder: str | Path, name: str) -> None:
    """Run a job under torchrun, and come back when all its processes have ended.

    Each process gets the job's configuration as composed and resolved here. Hydra's own files and the job's log are
    left to this process.

    Args:
        config: The job's configuration.
        processes: How many.
        start: The job's main function.
        folder: The job's folder.
        name: Hydra's name of the job.

    Raises:
        ProcessError: One of the processes has failed; torchrun has then ended the others.
    """
    content = {
        "defaults": ["_self_", {"override hydra/job_logging": "stdout"}],
        "hydra": {"run": {"dir": str(folder)}, "output_subdir": None, "mode": "RUN", "job": {"name": name}},
        **cast(dict[str, Any], OmegaConf.to_container(config, resolve=True)),
    }
    with tempfile.TemporaryDirectory() as scratch:
        OmegaConf.save(content, Path(scratch, f"{CONFIG_NAME}.yaml"))
        error_file = Path(scratch, "error.json")
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        threads = str(max(1, (os.cpu_count() or 1) // processes))
        environment = {"OMP_NUM_THREADS": threads} | os.environ | {"TORCHELASTIC_ERROR_FILE": str(error_file)}
        if _ended([*torchrun, *start.command(Path(scratch))], environment):
            raise _first_error(error_file)


def share_folder(config: DictConfig) -> Any:
    """Give all processes that torchrun has started the run folder of the first, which alone writes Hydra's files.

    Args:
        config: Hydra's whole configuration, which is changed.

    Returns:
        The store that held the folder, to be kept until the process group exists: it may be the only server there.
    """
    store, rank, _ = next(rendezvous("env://", timeout=timedelta(minutes=5)))
    if rank == 0:
        store.set(FOLDER_KEY, os.path.abspath(config.hydra.run.dir))
        return store
    logging_config = config.hydra.job_logging
    with open_dict(config), read_write(config):
        config.hydra.run.dir = store.get(FOLDER_KEY).decode()
        config.hydra.output_subdir = None
        logging_config.get("handlers", {}).pop("file", None)
        logging_config.root.handlers = [name for name in logging_config.root.handlers if name != "file"]
    return store


def _ended(command: list[str], environment: dict[str, str]) -> int:
    """Exit code of a command, which does not outlive this process' wait for it."""
    # In a session of its own: on Ctrl-C it is to hear once, from here, and then has to end the processes.
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    with _exiting_on_sigterm():
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise


@contextmanager
def _exiting_on_sigterm() -> Iterator[None]:
    """SIGTERM raises SystemExit, so that what was started is ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _exit(number: int, _: Any) -> NoReturn:
    sys.exit(128 + number)


def _first_error(file: Path) -> ProcessError:
    """Error of the process that failed first, as torchrun wrote it."""
    if not file.is_file():
        return ProcessError("A process ended without an exception, as one does that is killed for want of memory.", "")
    message = json.loads(file.read_text())["message"]
    return ProcessError(message["message"], message["extraInfo"]["py_callstack"])


@contextmanager
def _silent() -> Iterator[None]:
    """Without what a trainer tells of the machine, which the one that trains tells too."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
