"""The page of a run's or a sweep's folder."""

from __future__ import annotations

from pathlib import Path

from nc_callbacks.files import write_whole
from nc_callbacks.report.page import PAGE, render_page
from nc_callbacks.report.payload import build_payload
from nc_callbacks.runs.folder import read


def write_report(folder: str | Path) -> Path:
    """Write ``report.html`` into a run's or a sweep's folder, from what lies there.

    Read are, as far as they are there: ``summary.json``, ``error.json``, ``metrics.csv``, ``looks.npz``,
    ``.hydra/config.yaml`` and ``.hydra/overrides.yaml`` of each run, and ``sweep.csv`` of a sweep.

    Args:
        folder: A run's folder, or a folder with runs' folders in it, however deep.

    Returns:
        The page.

    Raises:
        FileNotFoundError: The folder is neither a run's nor a sweep's.
        ValueError: It is a run's, and a file in it cannot be read; the message names it. In a sweep such a run is
            shown as ``unreadable``.
    """
    sweep, runs = read(folder)
    target = Path(folder, PAGE)
    write_whole(target, render_page(runs, sweep, build_payload(runs, sweep)))
    return target
