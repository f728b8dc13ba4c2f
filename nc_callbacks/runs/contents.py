"""The files in a run's folder, read with care: each gives what it should hold, or one sentence that names it.

They may come from anywhere. Nothing in them is run, no object is made of them, and none is read that is too large.
"""

from __future__ import annotations

import csv
import io
import json
import math
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml

from nc_callbacks.metrics import LogKey, metric_of
from nc_callbacks.report.run import Curve, Looks

ENDED = "@ended"
"""Entry of ``looks.npz``."""

MAX_BYTES = 2**26
"""Of a file of settings or of last values."""

MAX_TABLE_BYTES = 2**30
"""Of a table of curves, and of all arrays of looks."""

ENDINGS = ("finished", "stopped", "failed")
"""How a run can end that has left a summary."""

_DIMENSIONS = {"class": 2, "direction": 2, "class × class": 3, "sample": 3}
"""Of the looks of a metric, by its axis."""

T = TypeVar("T")


def parsed(path: Path, parse: Callable[[bytes], T], limit: int = MAX_BYTES) -> T | None:
    """Content of a file; None where there is none.

    Raises:
        ValueError: It cannot be read; one sentence with its path.
    """
    if not path.exists():
        return None
    try:
        if not path.is_file():
            raise ValueError("it is a folder, or no file at all")
        if path.stat().st_size > limit:
            raise ValueError(f"it has {path.stat().st_size:,} bytes, and at most {limit:,} are expected")
        return parse(path.read_bytes())
    # Parsers have many ways to fail on what is not theirs, deep nesting and a lack of memory among them.
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} cannot be read: {text[:300].rstrip('.')}.") from error


def summary(content: bytes) -> dict[str, Any]:
    """``summary.json``: metrics (NaN where they were not finite), epochs, seconds, versions, and how the run ended."""
    found = _mapping(json.loads(_text(content), object_pairs_hook=_once), "summary")
    metrics = _mapping(found.get("metrics", {}), "metrics")
    versions = _mapping(found.get("versions", {}), "versions")
    if (status := found.get("status", "finished")) not in ENDINGS:
        raise ValueError(f"expected one of {', '.join(ENDINGS)} as its status, got {status!r}")
    return {
        "status": status,
        "error": " ".join(str(found.get("error", "")).split()),
        "metrics": {key: _number(value, key) for key, value in metrics.items()},
        "epochs": _optional(found.get("epochs"), "epochs", int),
        "seconds": _optional(found.get("seconds"), "seconds", float),
        "versions": {name: str(text) for name, text in versions.items() if text},
    }


def failure(content: bytes) -> str:
    """The error of ``error.json``, in one line."""
    found = _mapping(json.loads(_text(content), object_pairs_hook=_once), "file")
    if not isinstance(found.get("error"), str):
        raise ValueError('it has no text "error"')
    return " ".join(found["error"].split())


def overrides(content: bytes) -> dict[str, str]:
    """Names and values in Hydra's ``overrides.yaml``."""
    items = _yaml(content)
    if not isinstance(items or [], list):
        raise ValueError(f"expected a list of overrides, got {type(items).__name__}")
    texts = [str(item).lstrip("+") for item in items or []]
    return dict(text.split("=", 1) for text in texts if "=" in text and not text.startswith("resume="))


def config(content: bytes) -> tuple[str, dict[str, Any]]:
    """Hydra's ``config.yaml``, as text and read."""
    return _text(content), _mapping(_yaml(content) or {}, "configuration")


def curves(content: bytes) -> dict[str, Curve]:
    """Each column of Lightning's ``metrics.csv`` over epochs, counted from 1: the epoch's last value."""
    rows = csv.reader(io.StringIO(_text(content), newline=""))
    names = next(rows, [])
    if "epoch" not in names:
        raise ValueError("it has no column 'epoch', so it is not of Lightning's CSVLogger")
    _refuse_twice(names)
    columns: dict[str, dict[int, float]] = {}
    for row in filter(None, rows):
        if len(row) > len(names):
            raise ValueError(f"line {rows.line_num} has {len(row)} cells, and the header has {len(names)}")
        cells = dict(zip(names, row, strict=False))
        epoch = int(float(cells.pop("epoch"))) + 1
        for key, text in cells.items():
            if text and key != "step":
                columns.setdefault(key, {})[epoch] = float(text)
    with np.errstate(over="ignore"):
        return {
            key: (np.array(list(values), np.int32), np.array(list(values.values()), np.float32))
            for key, values in columns.items()
        }


def looks(content: bytes) -> dict[str, Looks]:
    """The vectors and matrices of ``looks.npz``, by log key."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        size = sum(member.file_size for member in archive.infolist())
        _refuse_twice(archive.namelist())
    if size > MAX_TABLE_BYTES:
        raise ValueError(f"its arrays have {size:,} bytes, and at most {MAX_TABLE_BYTES:,} are expected")
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return {key: _looks(key, file) for key in file.files if "@" not in key}


def fit_ended(content: bytes) -> bool:
    """Whether the fit whose looks are in ``looks.npz`` has ended."""
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return ENDED in file.files and bool(file[ENDED].all())


def _looks(key: str, file: Any) -> Looks:
    values, epochs, step = file[key], file[f"{key}@epochs"], file[f"{key}@step"]
    if values.dtype.kind not in "biuf" or epochs.dtype.kind not in "iu" or step.dtype.kind not in "iu":
        raise ValueError(f"{key} does not hold numbers")
    if epochs.shape != values.shape[:1] or step.size != 1 or step.item() < 1:
        raise ValueError(f"{key} has {values.shape} values at {epochs.shape} epochs and {step.shape} steps")
    dimensions = _DIMENSIONS.get(metric_of(LogKey.parse(key).name).axis, values.ndim)
    square = metric_of(LogKey.parse(key).name).axis != "class × class" or values.shape[1:2] == values.shape[2:]
    if values.ndim != dimensions or values.ndim not in (2, 3) or 0 in values.shape[1:] or not square:
        raise ValueError(f"{key} has the shape {values.shape}, which is none of its metric's")
    with np.errstate(over="ignore"):
        return Looks(epochs.astype(np.int64), values.astype(np.float32), int(step.item()))


class _Loader(yaml.SafeLoader):
    """Makes no objects, and takes no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        _refuse_twice(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        return super().construct_mapping(node, deep)


def _yaml(content: bytes) -> Any:
    return yaml.load(_text(content), _Loader)


def _text(content: bytes) -> str:
    return content.decode("utf-8-sig")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _refuse_twice(key for key, _ in pairs)
    return dict(pairs)


def _refuse_twice(names: Iterable[str]) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"it has {twice[0]!r} more than once")


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"expected a mapping as its {what}, got {type(value).__name__}")
    return {str(key): item for key, item in value.items()}


def _number(value: Any, what: str) -> float:
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise ValueError(f"expected a number or null as {what}, got {type(value).__name__}")
    return math.nan if value is None else float(value)


def _optional(value: Any, what: str, kind: Callable[[float], Any]) -> Any:
    number = _number(value, what)
    if value is not None and not (math.isfinite(number) and number >= 0):
        raise ValueError(f"expected a number of {what}, got {value}")
    return None if value is None else kind(number)
