"""What a run prints when it has ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nc_callbacks.metrics import METRICS, LogKey, metric_of, short
from nc_callbacks.report.page import duration
from nc_callbacks.runs.folder import SUMMARY_FILE

LINES = (
    "loss",
    "nc1",
    "nc2_etf",
    "nc3",
    "nc4",
    "accuracy",
    "wm_cosine",
    "accuracy_centred_means",
    "sqi_epsilon_rel_std",
    "spectrum_effective_rank",
)
"""Metrics, a line each, those of a section together."""

OF_ONE_LINE = ("val/accuracy", "nc/train/accuracy", "nc/train/nc1", "nc/train/wm_cosine")

_ARROWS = {"down": "↓", "up": "↑", "ideal": "→", "none": ""}


def print_summary(
    summary: dict[str, Any],
    folder: str | Path,
    page: Path | None = None,
    first: Mapping[str, float] | None = None,
    verbose: bool = False,
) -> None:
    """Print how the conditions of collapse went, in ten lines or so, and where the run's folder is.

    Args:
        summary: As `write_summary` returns it.
        folder: The run's folder.
        page: Its page, if there is one.
        first: Values at the first look, by log key.
        verbose: All last values instead.
    """
    console = Console()
    lines = None if verbose else digest(summary["metrics"], first or {})
    console.print(f"After {summary['epochs']} epochs, {duration(summary['seconds'])}")
    console.print(_all_values(summary["metrics"]) if lines is None else lines)
    if lines is not None:
        console.print(f"All {len(summary['metrics'])} values: {SUMMARY_FILE}, or verbose=true", highlight=False)
    console.print(f"Run folder: {folder}", soft_wrap=True, highlight=False, markup=False)
    if page is not None:
        console.print(f"Page: {page}", soft_wrap=True, highlight=False, markup=False)


def print_line(summary: dict[str, Any]) -> None:
    """Print the end of one run of many: how long it took, and a few last values."""
    shown = [(key, summary["metrics"].get(key)) for key in OF_ONE_LINE]
    values = ", ".join(f"{key} {short(value)}" for key, value in shown if value is not None)
    Console().print(
        f"Trained for {duration(summary['seconds'])}{values and f': {values}'}.", soft_wrap=True, highlight=False
    )


def digest(metrics: Mapping[str, float | None], first: Mapping[str, float]) -> Table | None:
    """The main metrics at the classifier's input, grouped by condition: first look → last, and which way is collapse.

    Args:
        metrics: Last values by log key; None where one was not finite.
        first: Values at the first look.

    Returns:
        None where none of them was measured.
    """
    rows: dict[str, dict[str, str]] = {}
    for text, value in metrics.items():
        key = LogKey.parse(text)
        if key.name in LINES and not key.layer and key.prefix in ("nc", "") and key.is_ours == (key.name in METRICS):
            rows.setdefault(key.name, {})[key.data] = _from_to(key.name, first.get(text), value)
    if not rows:
        return None
    columns = list(dict.fromkeys(("train", *(data for cells in rows.values() for data in cells))))
    # Narrow, so that two splits fit into the 80 columns of a terminal.
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for title in ("", "metric", *columns, "at collapse"):
        # A number is never cut; a name is not broken.
        whole = title == "metric"
        table.add_column(title, justify="right" if title in columns else "left", no_wrap=whole, overflow="fold")
    before = None
    for name in LINES:
        if name in rows:
            section = METRICS[name].section if name in METRICS else "Training"
            title = "" if section == before else section
            table.add_row(title, escape(name), *(rows[name].get(data, "") for data in columns), _at_collapse(name))
            before = section
    return table


def _from_to(name: str, first: float | None, last: float | None) -> str:
    if last is None:
        return "not finite"
    if name.endswith("rel_std"):
        # A spread's mean may be negative, and its sign says nothing.
        last, first = abs(last), None if first is None else abs(first)
    return short(last) if first is None else f"{short(first)} → {short(last)}"


def _at_collapse(name: str) -> str:
    """Which way collapse is, and its value.

    Example:
        >>> _at_collapse("nc1"), _at_collapse("wm_cosine"), _at_collapse("loss")
        ('↓ 0', '↑ 1', '')
    """
    metric = metric_of(name)
    ideal = metric.ideal_text or ("" if not isinstance(metric.ideal, (int, float)) else short(metric.ideal))
    return f"{_ARROWS[metric.toward]} {ideal}".strip()


def _all_values(metrics: Mapping[str, float | None]) -> Table:
    """One row a metric and layer, one column a split and loader."""
    rows: dict[str, dict[str, float | None]] = {}
    for text, value in metrics.items():
        key = LogKey.parse(text)
        rows.setdefault(str(replace(key, split="", loader=None)), {})[key.data] = value
    columns = list(dict.fromkeys(("train", "val", *(data for values in rows.values() for data in values))))
    table = Table()
    table.add_column("metric")
    for column in columns:
        table.add_column(column, justify="right")
    for name, values in rows.items():
        table.add_row(escape(name), *(_four_digits(values[data]) if data in values else "" for data in columns))
    return table


def _four_digits(value: float | None) -> str:
    return "not finite" if value is None else short(value, 4)
