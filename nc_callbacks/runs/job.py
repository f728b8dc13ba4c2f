"""A job: one run of the training script, alone or in a sweep.

It loads Lightning only where a trainer is made, so that processes which hand a job on start quickly.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch.distributed.elastic.multiprocessing.errors import record

from nc_callbacks.files import write_whole
from nc_callbacks.runs.folder import ERROR_FILE, SUMMARY_FILE, is_finished
from nc_callbacks.runs.processes import ProcessError, processes_to_start, run_processes, started_by_torchrun
from nc_callbacks.runs.start import Start, absolute_path, start_of
from nc_callbacks.runs.summary import write_summary

Task = Callable[[DictConfig], Any]

log = logging.getLogger(__name__)


def job(task: Task) -> Job:
    """Decorate the training script's main function, under `hydra.main`.

    A job that wants several processes is run by torchrun. In a sweep, a job that fails leaves ``error.json`` and lets
    the others go on, and one that had finished is skipped with ``resume=true``; one that had not starts again, in an
    emptied folder.

    The job returns what the function returns or, where ``config.optimized_metric`` names a log key, its final value,
    for Hydra's sweepers; NaN where the job failed.

    Args:
        task: From the job's configuration, which has ``trainer``, ``data`` and ``resume``. It is a function at the top
            of a script or a module, or several processes cannot find it.
    """
    # Here, where the user has started: in the processes of a launcher the function is no longer where it was defined.
    return Job(task, start_of(task), absolute_path())


class Job:
    """A main function as a job; see `job`.

    Args:
        task: The function.
        start: Where further processes find it.
        path: `sys.path` where it was decorated, which a launcher's process takes over.
    """

    __wrapped__: Task

    def __init__(self, task: Task, start: Start | None, path: tuple[str, ...]) -> None:
        functools.update_wrapper(self, task)
        self.start = start
        self.path = path

    def __call__(self, config: DictConfig) -> Any:
        """Run the job with its configuration."""
        hydra = HydraConfig.get()
        folder = Path(hydra.runtime.output_dir)
        if hydra.mode != RunMode.MULTIRUN:
            return _run(self, config, folder)
        if config.resume:
            if is_finished(folder):
                log.info("Finished before, and skipped: %s", folder)
                return _objective(config, folder)
            _empty(folder)
        try:
            return _run(self, config, folder)
        except ProcessError as error:
            _fail(folder, str(error), error.traceback)
        except Exception as error:
            _fail(folder, f"{type(error).__name__}: {error}", traceback.format_exc())
        except BaseException:
            _leave_sweep(config)
            raise
        return math.nan if config.get("optimized_metric") else None

    def __reduce__(self) -> Any:
        # The path is there before the function is unpickled, which imports what lies beside the script.
        return _unpickled, (self.path,), vars(self)


def _unpickled(path: tuple[str, ...]) -> Job:
    sys.path.extend(entry for entry in path if entry not in sys.path)
    return Job.__new__(Job)


def config_problem(config: DictConfig) -> str | None:
    """Choices that do not fit together, if any, in a sentence.

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


def finish_wandb(failed: bool) -> None:
    """End the W&B run of this process, if there is one, so that the next job starts one of its own."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish(exit_code=int(failed))


def _run(job: Job, config: DictConfig, folder: Path) -> Any:
    task = job.__wrapped__
    if problem := config_problem(config):
        raise ValueError(problem)
    failed, returned, began = True, None, time.perf_counter()
    try:
        if processes := processes_to_start(config.trainer):
            if job.start is None:
                raise ValueError(
                    f"The trainer wants {processes} processes, and they cannot find the main function: expected one at "
                    "the top of a script or a module, got one of an interactive session or within another function."
                )
            # A download is for one process.
            instantiate(config.data).setup()
            run_processes(config, processes, job.start, folder, HydraConfig.get().job.name)
        elif started_by_torchrun():
            returned = record(task)(config)
        else:
            returned = task(config)
        failed = False
    finally:
        finish_wandb(failed)
    if HydraConfig.get().mode == RunMode.MULTIRUN and not (folder / SUMMARY_FILE).is_file():
        # Not every experiment trains one model.
        write_summary(folder, {}, 0, time.perf_counter() - began)
    return returned if started_by_torchrun() or not config.get("optimized_metric") else _objective(config, folder)


def _objective(config: DictConfig, folder: Path) -> float | None:
    """Final value of the log key that a sweeper optimises, if there is one."""
    if not (key := config.get("optimized_metric")):
        return None
    metrics = json.loads((folder / SUMMARY_FILE).read_text())["metrics"]
    if key not in metrics:
        raise ValueError(f"optimized_metric must be one of the final log keys {', '.join(metrics)}; got {key!r}.")
    return math.nan if metrics[key] is None else metrics[key]


def _fail(folder: Path, error: str, trace: str) -> None:
    log.error("This run failed, and the sweep goes on. %s\n%s", error, trace)
    write_whole(folder / ERROR_FILE, json.dumps({"error": error, "traceback": trace}, indent=2) + "\n")


def _leave_sweep(config: DictConfig) -> None:
    """The table and the page of a sweep that was stopped, where the runs follow each other in this process."""
    hydra = HydraConfig.get()
    summary = hydra.callbacks.get("sweep")
    if summary is None or not str(hydra.launcher.get("_target_", "")).endswith("BasicLauncher"):
        return
    log.warning("The sweep was stopped. resume=true hydra.sweep.dir=%s goes on with it.", hydra.sweep.dir)
    try:
        instantiate(summary).leave(Path(hydra.sweep.dir))
    except Exception as error:
        log.warning("The sweep's table could not be written: %r.", error)


def _empty(folder: Path) -> None:
    """Remove what an unfinished run left, except for what Hydra has just written."""
    for path in folder.iterdir():
        if path.is_dir() and path.name != HydraConfig.get().output_subdir:
            shutil.rmtree(path)
        elif path.is_file() and path.suffix != ".log":
            path.unlink()
