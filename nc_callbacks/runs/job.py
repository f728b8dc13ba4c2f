"""A job: one run of the training script, alone or in a sweep."""

from __future__ import annotations

import functools
import inspect
import json
import logging
import shutil
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch.distributed.elastic.multiprocessing.errors import record

from nc_callbacks.files import write_whole
from nc_callbacks.runs.folder import ERROR_FILE, SUMMARY_FILE, is_finished
from nc_callbacks.runs.loggers import finish_wandb
from nc_callbacks.runs.processes import ProcessError, processes_to_start, run_processes, started_by_torchrun
from nc_callbacks.runs.summary import write_summary

Task = Callable[[DictConfig], None]

log = logging.getLogger(__name__)


def job(task: Task) -> Task:
    """Decorate the training script's main function, under `hydra.main`.

    A job that wants several processes is run by torchrun. In a sweep, a job that fails leaves ``error.json`` and lets
    the others go on, and one that had finished is skipped with ``resume=true``; one that had not starts again, in an
    emptied folder.

    Args:
        task: From the job's configuration, which has ``trainer``, ``data`` and ``resume``.
    """

    @functools.wraps(task)
    def run(config: DictConfig) -> None:
        hydra = HydraConfig.get()
        folder = Path(hydra.runtime.output_dir)
        if hydra.mode != RunMode.MULTIRUN:
            _run(task, config, folder)
            return
        if config.resume:
            if is_finished(folder):
                log.info("Finished before, and skipped: %s", folder)
                return
            _empty(folder)
        start = time.perf_counter()
        try:
            _run(task, config, folder)
            if not (folder / SUMMARY_FILE).is_file():
                # Not every experiment trains one model.
                write_summary(folder, {}, 0, time.perf_counter() - start)
        except ProcessError as error:
            _fail(folder, str(error), error.traceback)
        except Exception as error:
            _fail(folder, f"{type(error).__name__}: {error}", traceback.format_exc())

    return run


def config_problem(config: DictConfig) -> str | None:
    """What of the choices does not fit together, if anything.

    Args:
        config: As composed.
    """
    scales = list(config.get("paper") or ())
    if scales and config.scale not in scales:
        return f"scale must be one of {', '.join(scales)}, got {config.scale!r}."
    callbacks = config.get("callbacks") or {}
    bare = [f"callbacks.{name}" for name, settings in callbacks.items() if "_target_" not in (settings or ())]
    if bare:
        return f"No callback is chosen for the settings of {', '.join(bare)}: they need callbacks=default."
    return None


def _run(task: Task, config: DictConfig, folder: Path) -> None:
    if problem := config_problem(config):
        raise ValueError(problem)
    failed = True
    try:
        if processes := processes_to_start(config.trainer):
            # A download is for one process.
            instantiate(config.data).setup()
            script = Path(HydraConfig.get().runtime.cwd, inspect.getfile(inspect.unwrap(task)))
            run_processes(config, processes, script, folder)
        elif started_by_torchrun():
            record(task)(config)
        else:
            task(config)
        failed = False
    finally:
        finish_wandb(failed)


def _fail(folder: Path, error: str, trace: str) -> None:
    log.error("This run failed, and the sweep goes on. %s\n%s", error, trace)
    write_whole(folder / ERROR_FILE, json.dumps({"error": error, "traceback": trace}, indent=2) + "\n")


def _empty(folder: Path) -> None:
    """Remove what an unfinished run left, except for what Hydra has just written."""
    for path in folder.iterdir():
        if path.is_dir() and path.name != HydraConfig.get().output_subdir:
            shutil.rmtree(path)
        elif path.is_file() and path.suffix != ".log":
            path.unlink()
