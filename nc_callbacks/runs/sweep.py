"""Sweeps: what `python train.py -m ...` leaves behind in its folder and on the terminal."""

from __future__ import annotations

import csv
import json
import re
import statistics
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich import box
from rich.console import Console
from rich.table import Table

from nc_callbacks.runs.job import ERROR_FILE, config_problem, is_finished
from nc_callbacks.runs.paper_figures import FIGURES, draw_paper_figure
from nc_callbacks.runs.processes import share_folder, started_by_torchrun
from nc_callbacks.runs.summary import SUMMARY_FILE, write_page

SWEEP_FILE = "sweep.csv"
MULTIRUN_FILE = "multirun.yaml"
WIDTH_OF_FILES = 160
"""Columns for the table where output goes to a file or a pipe."""


@dataclass(frozen=True)
class Run:
    """A run of a sweep, as its folder tells."""

    subfolder: str
    status: str
    """``finished``, ``failed`` or, where it was killed, ``unfinished``."""
    error: str
    overrides: dict[str, str]
    metrics: dict[str, float | None]
    """Final values by log key; None where not finite."""
    seconds: float | None


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

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        if config.resume:
            raise SystemExit("resume=true goes on with a sweep: expected --multirun and hydra.sweep.dir=FOLDER.")
        if problem := config_problem(config):
            raise SystemExit(problem)
        if started_by_torchrun():
            self.store = share_folder(config)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if started_by_torchrun():
            raise SystemExit(
                "Under torchrun each process would run the whole sweep. Start it with python train.py --multirun ...: "
                "with trainer=ddp or trainer=ddp_cpu each run starts its own processes."
            )
        folder, overrides = Path(config.hydra.sweep.dir), list(config.hydra.overrides.task)
        if problem := config_problem(config) or resume_problem(folder, overrides):
            raise SystemExit(problem)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        runs = read_runs(folder)
        write_sweep(runs, folder)
        print_sweep(runs, folder, self.metrics)
        write_page(folder)
        if self.figure is not None:
            self._draw(folder, self.figure)
        if any(run.status != "finished" for run in runs):
            raise SystemExit(1)

    def _draw(self, folder: Path, figure: str) -> None:
        try:
            for path in draw_paper_figure(folder, figure):
                Console().print(f"Written: {path}", soft_wrap=True, highlight=False, markup=False)
        except Exception as error:
            warnings.warn(f"{figure} could not be drawn: {error!r}.", stacklevel=2)


def resume_problem(folder: Path, overrides: list[str]) -> str | None:
    """What keeps a sweep from starting in this folder, if anything.

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
    """The runs in a sweep's folder, in the order of their numbers."""
    return [
        _read_run(path.parent.parent, folder)
        for path in sorted(folder.rglob(".hydra/overrides.yaml"), key=lambda path: _natural(str(path)))
    ]


def write_sweep(runs: list[Run], folder: Path) -> None:
    """Write ``sweep.csv``: a row a run; columns subfolder, status, error, overrides, final metrics, seconds."""
    overrides = list(dict.fromkeys(key for run in runs for key in run.overrides))
    metrics = list(dict.fromkeys(key for run in runs for key in run.metrics))
    with open(folder / SWEEP_FILE, "w", newline="") as file:
        writer = csv.DictWriter(file, ["subfolder", "status", "error", *overrides, *metrics, "seconds"])
        writer.writeheader()
        for run in runs:
            state = {"subfolder": run.subfolder, "status": run.status, "error": run.error, "seconds": run.seconds}
            writer.writerow(run.overrides | run.metrics | state)


def print_sweep(runs: list[Run], folder: Path, metrics: list[str]) -> None:
    """Print a row a set of overrides with mean ± standard deviation over the seeds, then the runs that failed."""
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
        table.add_row(*values, count, *cells)
    console = Console(width=None if sys.stdout.isatty() else WIDTH_OF_FILES)
    console.print("Final values, mean ± standard deviation over seeds:")
    console.print(table)
    for run in runs:
        if run.status != "finished":
            overrides = " ".join(f"{key}={value}" for key, value in run.overrides.items())
            line = f"{run.subfolder} ({overrides}) {run.status}{': ' if run.error else ''}{run.error}"
            console.print(line, soft_wrap=True, highlight=False, markup=False)
    console.print(f"Sweep folder: {folder}", soft_wrap=True, highlight=False, markup=False)


def _read_run(run_folder: Path, folder: Path) -> Run:
    overrides = (_parsed(str(text)) for text in OmegaConf.load(run_folder / ".hydra" / "overrides.yaml"))
    summary: dict[str, Any] = {}
    error = ""
    if (run_folder / ERROR_FILE).is_file():
        status = "failed"
        error = " ".join(json.loads((run_folder / ERROR_FILE).read_text())["error"].split())
    elif is_finished(run_folder):
        status = "finished"
        summary = json.loads((run_folder / SUMMARY_FILE).read_text())
    else:
        status = "unfinished"
    return Run(
        subfolder=run_folder.relative_to(folder).as_posix(),
        status=status,
        error=error,
        overrides={key: value for key, value in overrides if key != "resume"},
        metrics=summary.get("metrics", {}),
        seconds=summary.get("seconds"),
    )


def _mean_and_spread(values: list[float | None]) -> str:
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values):
        return "not finite"
    if not numbers:
        return ""
    spread = f"\n± {statistics.stdev(numbers):.2g}" if len(numbers) > 1 else ""
    return f"{statistics.fmean(numbers):.3g}{spread}"


def _is_resume(override: str) -> bool:
    return _parsed(override)[0] == "resume"


def _parsed(override: str) -> tuple[str, str]:
    """Key and value of an override such as ``seed=1`` or ``+trainer.precision=64-true``."""
    key, _, value = override.partition("=")
    return key.lstrip("+"), value


def _natural(text: str) -> list[tuple[int, str]]:
    """Sorts numbers in a path by their value."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]
