"""The one reader of a run's folder and of a sweep's folder."""

from __future__ import annotations

import csv
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from nc_callbacks.report.run import Curve, Looks, Run, varying
from nc_callbacks.runs import contents
from nc_callbacks.runs.tables import harmless

__all__ = ["Curve", "Looks", "Run", "is_finished", "is_run", "read", "read_run", "varying"]

SUMMARY_FILE = "summary.json"
"""Written when a run has ended."""

ERROR_FILE = "error.json"
"""Written when a run of a sweep has failed."""

METRICS_FILE = "metrics.csv"
LOOKS_FILE = "looks.npz"
"""File of `nc_callbacks.callbacks.look_recorder.LookRecorder`."""

SWEEP_FILE = "sweep.csv"

MARKS = (SUMMARY_FILE, METRICS_FILE, ".hydra")
"""A folder that holds one of these is a run's."""

DEPTH = 8
"""How far below a sweep's folder its runs may lie."""


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's."""
    return any((folder / mark).exists() for mark in MARKS)


def is_finished(folder: Path) -> bool:
    """Whether a run went to its end in the folder: its summary is whole, and no error was left."""
    try:
        summary = contents.parsed(folder / SUMMARY_FILE, contents.summary)
    except ValueError:
        return False
    return summary is not None and summary["status"] == "finished" and not (folder / ERROR_FILE).exists()


def read(folder: str | Path) -> tuple[bool, list[Run]]:
    """Read a run's folder, or a sweep's with its runs in subfolders, however deep.

    Returns:
        Whether it is a sweep, and the runs, in the order of their subfolders. Of a sweep, a run whose files cannot be
        read has the status ``unreadable``, and the sentence that says why as its error.

    Raises:
        FileNotFoundError: The folder is neither a run's nor a sweep's.
        ValueError: It is a run's, and a file in it cannot be read; the message names it.
    """
    folder = Path(folder).resolve()
    if is_run(folder):
        return False, [read_run(folder)]
    runs = [_read_or_say_why(path, path.relative_to(folder).as_posix()) for path in run_folders(folder)]
    if not runs:
        raise FileNotFoundError(
            f"{folder} is no run and no sweep: expected a folder with one of {', '.join(MARKS)} in it, or with "
            "subfolders that have. Give the folder that train.py names last, such as runs/DATE/TIME."
        )
    return True, list(_with_outcome(runs, folder / SWEEP_FILE))


def run_folders(folder: Path) -> list[Path]:
    """The runs' folders below a sweep's, 2 before 10."""
    found = []
    for place, subfolders, _ in os.walk(folder):
        depth = len(Path(place).relative_to(folder).parts)
        runs = {name for name in subfolders if is_run(Path(place, name))}
        found += [Path(place, name) for name in runs]
        subfolders[:] = [name for name in set(subfolders) - runs if not name.startswith(".") and depth < DEPTH - 1]
    return sorted(found, key=lambda path: _in_order(path.relative_to(folder).as_posix()))


def read_run(folder: Path, name: str | None = None) -> Run:
    """Read a run's folder; what is missing in it stays empty.

    Args:
        folder: The run's folder.
        name: What the run is called; by default as its folder.

    Raises:
        ValueError: A file in it cannot be read; the message names it.
    """
    error = contents.parsed(folder / ERROR_FILE, contents.failure)
    summary = contents.parsed(folder / SUMMARY_FILE, contents.summary)
    text, config = contents.parsed(folder / ".hydra" / "config.yaml", contents.config) or ("", {})
    run = Run(
        name=name or folder.name,
        folder=folder,
        status="unfinished",
        overrides=contents.parsed(folder / ".hydra" / "overrides.yaml", contents.overrides) or {},
        config_text=text,
        config=config,
        curves=read_metrics(folder / METRICS_FILE),
        looks=read_looks(folder / LOOKS_FILE),
    )
    if error is not None:
        return replace(run, status="failed", error=error)
    if summary is None:
        ended = contents.parsed(folder / LOOKS_FILE, contents.fit_ended, contents.MAX_TABLE_BYTES)
        return replace(run, status="finished") if ended else run
    return replace(run, **summary)


def read_metrics(path: Path) -> dict[str, Curve]:
    """Each column of Lightning's ``metrics.csv`` over epochs, counted from 1: the epoch's last value.

    Raises:
        ValueError: The file cannot be read.
    """
    return contents.parsed(path, contents.curves, contents.MAX_TABLE_BYTES) or {}


def read_looks(path: Path) -> dict[str, Looks]:
    """The vectors and matrices of ``looks.npz``, by log key.

    Raises:
        ValueError: The file cannot be read.
    """
    return contents.parsed(path, contents.looks, contents.MAX_TABLE_BYTES) or {}


def _read_or_say_why(folder: Path, name: str) -> Run:
    try:
        return read_run(folder, name)
    except ValueError as error:
        return Run(name, folder, "unreadable", str(error), overrides=_overrides(folder))


def _overrides(folder: Path) -> dict[str, str]:
    try:
        return contents.parsed(folder / ".hydra" / "overrides.yaml", contents.overrides) or {}
    except ValueError:
        return {}


def _with_outcome(runs: list[Run], path: Path) -> Iterator[Run]:
    """The runs with what ``sweep.csv`` has of those whose own folder says no more than that they did not end."""
    rows: dict[str, tuple[str, str]] = {}
    try:
        rows = contents.parsed(path, _outcomes) or {}
    except ValueError as broken:
        warnings.warn(str(broken), stacklevel=3)
    for run in runs:
        status, error = rows.get(str(harmless(run.name)), ("", ""))
        yield replace(run, status=status or run.status, error=error) if run.status == "unfinished" else run


def _outcomes(content: bytes) -> dict[str, tuple[str, str]]:
    """Status and error by subfolder."""
    rows = csv.DictReader(content.decode("utf-8-sig").splitlines(keepends=True))
    return {row["subfolder"]: (row.get("status") or "", row.get("error") or "") for row in rows}


def _in_order(text: str) -> list[tuple[int, str]]:
    """Sorts numbers in a path by their value."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]
