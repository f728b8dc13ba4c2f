"""One page of a run or of a sweep: a single HTML file that loads nothing from anywhere."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from nc_callbacks.report.page import PAGE

__all__ = ["PAGE", "write_report"]


def __getattr__(name: str) -> Any:
    """`write_report`, which reads a folder first and so stands above this room."""
    if name == "write_report":
        return import_module("nc_callbacks.runs.page").write_report
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
