"""One page of a run or of a sweep: a single HTML file that loads nothing from anywhere."""

from __future__ import annotations

from pathlib import Path

from nc_callbacks.report.page import PAGE, render_page
from nc_callbacks.report.payload import build_payload
from nc_callbacks.runs.folder import read

__all__ = ["PAGE", "write_report"]


def write_report(folder: str | Path) -> Path:
    """Write ``report.html`` into a run's or a sweep's folder, from what lies there.

    Read are, as far as they are there: ``summary.json``, ``metrics.csv``, ``looks.npz``, ``.hydra/config.yaml`` and
    ``.hydra/overrides.yaml`` of each run, and ``sweep.csv`` of a sweep.

    Args:
        folder: A run's folder, or a folder whose subfolders are runs'.

    Returns:
        The page.

    Raises:
        FileNotFoundError: The folder is neither a run's nor a sweep's.
        ValueError: A file in it cannot be read; the message names it.
    """
    sweep, runs = read(folder)
    target = Path(folder, PAGE)
    target.write_text(render_page(runs, sweep, build_payload(runs, sweep)), encoding="utf-8")
    return target
