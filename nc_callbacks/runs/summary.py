"""The end of a run: summary.json, and the page."""

from __future__ import annotations

import json
import math
import platform
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nc_callbacks.files import write_whole
from nc_callbacks.runs.folder import SUMMARY_FILE
from nc_callbacks.runs.page import write_report

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

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


def write_page(folder: str | Path) -> None:
    """Write ``report.html`` of a run or sweep and say where it is; a page that fails is a warning."""
    from rich.console import Console

    try:
        page = write_report(folder)
    except Exception as error:
        warnings.warn(f"The page of {folder} could not be written: {error!r}.", stacklevel=2)
    else:
        Console().print(f"Page: {page}", soft_wrap=True, highlight=False, markup=False)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
