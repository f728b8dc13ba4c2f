"""What lies in a run's folder and in a sweep's folder."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jaxtyping import Float, Int

LOOKS_FILE = "looks.npz"
"""What `nc_callbacks.callbacks.look_recorder.LookRecorder` writes."""

MARKS = ("summary.json", "metrics.csv", ".hydra")
"""A folder that holds one of these is a run's."""

Curve = tuple[Int[np.ndarray, " looks"], Float[np.ndarray, " looks"]]
"""Epochs, counted from 1, and what was logged after each."""


@dataclass(frozen=True)
class Looks:
    """A vector or a matrix over the looks that were kept."""

    epochs: Int[np.ndarray, " looks"]
    """Counted from 1."""
    values: Float[np.ndarray, "looks ..."]
    step: int = 1
    """How many classes an entry stands for."""


@dataclass(frozen=True)
class Run:
    """One run, as far as its folder tells."""

    name: str
    folder: Path
    status: str = "finished"
    """``finished``, ``failed``, or ``unfinished`` where there is no summary."""
    error: str = ""
    overrides: dict[str, str] = field(default_factory=dict)
    config_text: str = ""
    """Hydra's configuration, as YAML."""
    config: dict[str, Any] = field(default_factory=dict)
    """The same, read."""
    epochs: int | None = None
    seconds: float | None = None
    versions: dict[str, str] = field(default_factory=dict)
    final: dict[str, float] = field(default_factory=dict)
    """Last value of each log key; NaN where it was not finite."""
    curves: dict[str, Curve] = field(default_factory=dict)
    """Each log key over epochs."""
    looks: dict[str, Looks] = field(default_factory=dict)
    """Vectors and matrices over epochs, by log key."""


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's."""
    return any((folder / mark).exists() for mark in MARKS)


def read(folder: str | Path) -> tuple[bool, list[Run]]:
    """Read a run's folder, or a sweep's with its runs in subfolders.

    Returns:
        Whether it is a sweep, and the runs, in the order of their subfolders.

    Raises:
        FileNotFoundError: The folder is neither a run's nor a sweep's.
        ValueError: A file in it cannot be read; the message names it.
    """
    folder = Path(folder).resolve()
    if is_run(folder):
        return False, [read_run(folder)]
    children = sorted(folder.iterdir(), key=_in_order) if folder.is_dir() else []
    runs = [read_run(child) for child in children if child.is_dir() and is_run(child)]
    if not runs:
        raise FileNotFoundError(
            f"{folder} is no run and no sweep: expected a folder with one of {', '.join(MARKS)} in it, or with "
            "subfolders that have. Give the folder that train.py names last, such as runs/DATE/TIME."
        )
    return True, list(_with_outcome(runs, folder / "sweep.csv"))


def read_run(folder: Path) -> Run:
    """Read a run's folder; what is missing in it stays empty.

    Raises:
        ValueError: A file in it cannot be read; the message names it.
    """
    has_summary = (folder / "summary.json").is_file()
    summary = _parsed(folder / "summary.json", json.loads) if has_summary else {}
    overrides = _parsed(folder / ".hydra" / "overrides.yaml", yaml.safe_load) or []
    config_file = folder / ".hydra" / "config.yaml"
    curves = read_metrics(folder / "metrics.csv")
    final = {key: values[-1] for key, (_, values) in curves.items()}
    final |= {key: math.nan if value is None else value for key, value in summary.get("metrics", {}).items()}
    return Run(
        name=folder.name,
        folder=folder,
        status="finished" if has_summary else "unfinished",
        overrides=dict(item.lstrip("+").split("=", 1) for item in overrides if "=" in item),
        config_text=config_file.read_text(encoding="utf-8") if config_file.is_file() else "",
        config=_parsed(config_file, yaml.safe_load) or {},
        epochs=summary.get("epochs"),
        seconds=summary.get("seconds"),
        versions={name: text for name, text in summary.get("versions", {}).items() if text},
        final={key: float(value) for key, value in final.items()},
        curves=curves,
        looks=read_looks(folder / LOOKS_FILE),
    )


def read_metrics(path: Path) -> dict[str, Curve]:
    """Each column of Lightning's ``metrics.csv`` over epochs, counted from 1: the epoch's last value.

    Raises:
        ValueError: The file cannot be read.
    """
    if not path.is_file():
        return {}
    columns: dict[str, dict[int, float]] = {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if "epoch" not in (reader.fieldnames or ()):
                raise KeyError("epoch")
            for row in reader:
                epoch = int(float(row.pop("epoch"))) + 1
                row.pop("step", None)
                for key, text in row.items():
                    if text:
                        columns.setdefault(key, {})[epoch] = float(text)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a metrics.csv of Lightning's CSVLogger: {error!r}.") from error
    return {
        key: (np.array(list(values), dtype=np.int32), np.array(list(values.values()), dtype=np.float32))
        for key, values in columns.items()
    }


def read_looks(path: Path) -> dict[str, Looks]:
    """The vectors and matrices of ``looks.npz``, by log key.

    Raises:
        ValueError: The file cannot be read.
    """
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            keys = [key for key in file.files if "@" not in key]
            return {key: Looks(file[f"{key}@epochs"], file[key], int(file[f"{key}@step"])) for key in keys}
    except Exception as error:
        raise ValueError(f"{path} is not a file of LookRecorder: {error!r}.") from error


def varying(runs: list[Run]) -> list[str]:
    """Names of the overrides that differ between runs, in the order of the first run that has them."""
    names = dict.fromkeys(name for run in runs for name in run.overrides if not name.startswith("hydra"))
    return [name for name in names if len({run.overrides.get(name) for run in runs}) > 1]


def _with_outcome(runs: list[Run], path: Path) -> Iterator[Run]:
    """The runs with the status and the error that ``sweep.csv`` has of them."""
    rows: dict[str, dict[str, str]] = {}
    if path.is_file():
        with open(path, newline="", encoding="utf-8") as file:
            rows = {row.get("subfolder", ""): row for row in csv.DictReader(file)}
    for run in runs:
        row = rows.get(run.name, {})
        yield replace(run, status=row.get("status") or run.status, error=row.get("error") or "")


def _parsed(path: Path, parse: Any) -> Any:
    if not path.is_file():
        return None
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error


def _in_order(path: Path) -> list[Any]:
    """Sorts 2 before 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]
