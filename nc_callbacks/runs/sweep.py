"""Sweeps: what `python train.py -m ...` leaves behind in its folder and on the terminal."""

from __future__ import annotations

import math
import statistics
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nc_callbacks.metrics import short
from nc_callbacks.report.run import Run
from nc_callbacks.runs.folder import SWEEP_FILE, read
from nc_callbacks.runs.job import config_problem
from nc_callbacks.runs.paper_figures import FIGURES, draw_paper_figure
from nc_callbacks.runs.processes import share_folder, started_by_torchrun
from nc_callbacks.runs.progress import SweepProgress, number_of_runs
from nc_callbacks.runs.summary import write_page
from nc_callbacks.runs.tables import write_table

MULTIRUN_FILE = "multirun.yaml"
WIDTH_OF_FILES = 160
"""Columns for the table where output goes to a file or a pipe."""


class SweepSummary(Callback):
    """Hydra callback: a sweep's folder is its own, and ends with ``sweep.csv``, a table and an exit code.

    Args:
        metrics: Log keys in the table on the terminal; ``sweep.csv`` holds all.
        figure: One of the papers' figures to draw from the runs; see `nc_callbacks.runs.paper_figures`.

    Raises:
        ValueError: There is no such figure.
    """

    def __init__(self, metrics: Sequence[str], figure: str | None = None) -> None:
        if figure not in (None, *FIGURES):
            raise ValueError(f"figure must be one of {', '.join(FIGURES)}, got {figure!r}.")
        self.metrics = list(metrics)
        self.figure = figure
        self.progress: SweepProgress | None = None

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a run that cannot be; under torchrun, share its folder."""
        if config.resume:
            raise SystemExit("resume=true goes on with a sweep: expected --multirun and hydra.sweep.dir=FOLDER.")
        if problem := config_problem(config):
            raise SystemExit(problem)
        if started_by_torchrun():
            self.store = share_folder(config)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a sweep that cannot be, and begin its progress."""
        if started_by_torchrun():
            raise SystemExit(
                "Under torchrun each process would run the whole sweep. Start it with python train.py --multirun ...: "
                "with trainer=ddp or trainer=ddp_cpu each run starts its own processes."
            )
        folder, overrides = Path(config.hydra.sweep.dir), list(config.hydra.overrides.task)
        if problem := config_problem(config) or resume_problem(folder, overrides):
            raise SystemExit(problem)
        if str(config.hydra.launcher.get("_target_", "")).endswith("BasicLauncher"):
            self.progress = SweepProgress(number_of_runs(config.hydra.sweeper, overrides))

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Say which run begins."""
        if self.progress is not None:
            self.progress.say(" ".join(map(str, config.hydra.overrides.task)))

    def on_job_end(self, config: DictConfig, job_return: Any, **kwargs: Any) -> None:
        """Count a run that has ended."""
        if self.progress is not None:
            self.progress.done += 1

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write the table, the CSV and the page of the sweep; exit with 1 where a run failed."""
        folder = Path(config.hydra.sweep.dir)
        runs = self.leave(folder)
        if self.figure is not None:
            self._draw(folder, self.figure)
        if any(run.status != "finished" for run in runs):
            raise SystemExit(1)

    def leave(self, folder: Path) -> list[Run]:
        """Write and print what the runs in a sweep's folder have come to."""
        runs = read_runs(folder)
        write_sweep(runs, folder)
        print_sweep(runs, folder, self.metrics)
        write_page(folder)
        return runs

    def _draw(self, folder: Path, figure: str) -> None:
        try:
            for path in draw_paper_figure(folder, figure):
                Console().print(f"Written: {path}", soft_wrap=True, highlight=False, markup=False)
        except Exception as error:
            warnings.warn(f"{figure} could not be drawn: {error!r}.", stacklevel=2)


def resume_problem(folder: Path, overrides: list[str]) -> str | None:
    """Obstacle to a sweep in this folder, if any, in a sentence.

    Args:
        folder: The sweep's folder.
        overrides: What the sweep was called with.
    """
    given = [text for text in overrides if not _is_resume(text)]
    resume = any(_is_resume(text) and text.split("=")[1].lower() == "true" for text in overrides)
    if not (folder / MULTIRUN_FILE).is_file():
        return f"resume=true: {folder} holds no sweep; expected hydra.sweep.dir=FOLDER of one." if resume else None
    if not resume:
        return f"{folder} holds a sweep: go on with it with resume=true, or choose another hydra.sweep.dir."
    before = OmegaConf.load(folder / MULTIRUN_FILE).hydra.overrides.task
    before = [text for text in before if not _is_resume(text)]
    if before != given:
        return (
            f"resume=true goes on with the same sweep: {folder} was started with {' '.join(before)!r}, and this is "
            f"{' '.join(given)!r}. Run what is new in a folder of its own."
        )
    return None


def read_runs(folder: Path) -> list[Run]:
    """The runs in a sweep's folder, in the order of their numbers; none where there are none."""
    try:
        return read(folder)[1]
    except FileNotFoundError:
        return []


def write_sweep(runs: list[Run], folder: Path) -> None:
    """Write ``sweep.csv``: one row per run; columns subfolder, status, error, overrides, final metrics, seconds."""
    columns = ["subfolder", "status", "error"]
    for found in (run.overrides for run in runs), (run.metrics for run in runs):
        columns += [key for key in dict.fromkeys(key for names in found for key in names) if key not in columns]
    write_table(folder / SWEEP_FILE, [*columns, "seconds"], map(_row, runs))


def _row(run: Run) -> dict[str, Any]:
    state = {"subfolder": run.name, "status": run.status, "error": run.error, "seconds": run.seconds}
    metrics = {key: value if math.isfinite(value) else "" for key, value in run.metrics.items()}
    return run.overrides | metrics | state


def print_sweep(runs: list[Run], folder: Path, metrics: list[str]) -> None:
    """Print one row per set of overrides with mean ± standard deviation over the seeds, then the runs that failed."""
    keys = [key for key in dict.fromkeys(k for run in runs for k in run.overrides) if key != "seed"]
    varied = [key for key in keys if len({run.overrides.get(key) for run in runs}) > 1]
    shown = [key for key in metrics if any(key in run.metrics for run in runs)]
    table = Table(box=box.SIMPLE)
    for key in varied:
        table.add_column(key.replace(".", ".\n"), overflow="fold")
    table.add_column("runs", justify="right")
    for key in shown:
        table.add_column(key.replace("/", "/\n"), justify="right", no_wrap=True)
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(run.overrides.get(key, "") for key in varied), []).append(run)
    for values, group in groups.items():
        finished = [run for run in group if run.status == "finished"]
        count = str(len(group)) if len(finished) == len(group) else f"{len(finished)} of {len(group)}"
        cells = (_mean_and_spread([run.metrics[key] for run in finished if key in run.metrics]) for key in shown)
        table.add_row(*map(escape, values), count, *cells)
    console = Console(width=None if sys.stdout.isatty() else WIDTH_OF_FILES)
    console.print("Final values, mean ± standard deviation over seeds:")
    console.print(table)
    for run in runs:
        if run.status != "finished":
            overrides = " ".join(f"{key}={value}" for key, value in run.overrides.items())
            line = f"{run.name} ({overrides}) {run.status}{': ' if run.error else ''}{run.error}"
            console.print(line, soft_wrap=True, highlight=False, markup=False)
    console.print(f"Sweep folder: {folder}", soft_wrap=True, highlight=False, markup=False)


def _mean_and_spread(values: list[float]) -> str:
    if not all(map(math.isfinite, values)):
        return "not finite"
    if not values:
        return ""
    spread = f"\n± {short(statistics.stdev(values), 2)}" if len(values) > 1 else ""
    return f"{short(statistics.fmean(values))}{spread}"


def _is_resume(override: str) -> bool:
    return override.lstrip("+").startswith("resume=")
