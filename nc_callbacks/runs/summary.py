"""The end of a run: summary.json and a table of the last values."""

from __future__ import annotations

import json
import math
import platform
import warnings
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from nc_callbacks.files import write_whole
from nc_callbacks.metrics import LogKey
from nc_callbacks.runs.folder import SUMMARY_FILE
from nc_callbacks.runs.page import write_report

PACKAGES = ("nc-callbacks", "torch", "lightning", "torchmetrics", "torchvision", "scikit-learn", "numpy")


def summarise(trainer: Trainer, folder: str | Path, seconds: float) -> dict[str, Any]:
    """Write ``summary.json`` of a training run: the last value of each log key, seconds of training, and versions.

    Args:
        trainer: A trainer that has fitted.
        folder: Where to write.
        seconds: How long it trained.

    Returns:
        The content.
    """
    metrics = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
    return write_summary(folder, metrics, trainer.current_epoch, seconds)


def write_summary(
    folder: str | Path,
    metrics: dict[str, float],
    epochs: int,
    seconds: float,
    status: str = "finished",
    error: str = "",
) -> dict[str, Any]:
    """Write ``summary.json``, which says how a run has ended.

    Values that are not finite are written as null, since JSON has no NaN.

    Args:
        folder: Where to write.
        metrics: Final values by log key.
        epochs: How many epochs were trained.
        seconds: How long the run took.
        status: ``"finished"``, ``"stopped"`` (Ctrl-C, SIGTERM) or ``"failed"``.
        error: What stopped it.

    Returns:
        The content.
    """
    ended = {} if status == "finished" else {"status": status, "error": " ".join(error.split())}
    summary = {
        "metrics": {name: value if math.isfinite(value) else None for name, value in metrics.items()},
        "epochs": epochs,
        "seconds": round(seconds, 2),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
    } | ended
    write_whole(Path(folder, SUMMARY_FILE), json.dumps(summary, indent=2) + "\n")
    return summary


def print_summary(summary: dict[str, Any], folder: str | Path, page: Path | None = None) -> None:
    """Print the last values as a table, one column per split and loader, and where the run's folder is."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    rows: dict[str, dict[str, float | None]] = {}
    for text, value in summary["metrics"].items():
        key = LogKey.parse(text)
        rows.setdefault(str(replace(key, split="", loader=None)), {})[key.data] = value
    columns = list(dict.fromkeys(("train", "val", *(data for values in rows.values() for data in values))))
    table = Table(title=f"After {summary['epochs']} epochs, {summary['seconds']:.0f} s", title_justify="left")
    table.add_column("metric")
    for column in columns:
        table.add_column(column, justify="right")
    for name, values in rows.items():
        table.add_row(escape(name), *(_formatted(values[data]) if data in values else "" for data in columns))
    console = Console()
    console.print(table)
    console.print(f"Run folder: {folder}", soft_wrap=True, highlight=False, markup=False)
    if page is not None:
        console.print(f"Page: {page}", soft_wrap=True, highlight=False, markup=False)


def write_page(folder: str | Path) -> None:
    """Write ``report.html`` of a run or sweep and say where it is; a page that fails is a warning."""
    from rich.console import Console

    try:
        page = write_report(folder)
    except Exception as error:
        warnings.warn(f"The page of {folder} could not be written: {error!r}.", stacklevel=2)
    else:
        Console().print(f"Page: {page}", soft_wrap=True, highlight=False, markup=False)


def _formatted(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
