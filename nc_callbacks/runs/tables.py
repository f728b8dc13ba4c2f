"""Tables as CSV files that a spreadsheet can open without running what a cell says."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nc_callbacks.files import replacing

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def write_table(path: str | Path, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a CSV file, whole or not at all, with harmless cells; what a row lacks stays empty."""
    columns = list(columns)
    with replacing(path, newline="") as file:
        writer = csv.writer(file)
        writer.writerow(map(harmless, columns))
        writer.writerows([harmless(row.get(column, "")) for column in columns] for row in rows)


def harmless(cell: Any) -> Any:
    """A cell as it is, with an apostrophe before a text that a spreadsheet would take for a formula.

    Example:
        >>> harmless("=1+1"), harmless("-0.5"), harmless("-1+cmd"), harmless(-0.5), harmless("tanh")
        ("'=1+1", '-0.5', "'-1+cmd", -0.5, 'tanh')
    """
    if not isinstance(cell, str) or _NUMBER.fullmatch(cell):
        return cell
    runs = cell[:1] in ("\t", "\r", "\n") or cell.lstrip()[:1] in ("=", "@", "+", "-")
    return f"'{cell}" if runs else cell
