"""The part of many looks that is kept: a history in a checkpoint, and which looks of many stay."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

MAX_LOOKS = 40
"""Looks kept of each vector and matrix."""

MAX_ENTRIES = 1_000
"""Entries kept of a vector."""

Record = dict[str, Any]
"""An entry of a history."""


def least_missed(epochs: Sequence[int]) -> int:
    """Place of the epoch whose absence leaves the narrowest gap on a logarithmic axis; never the first or the last.

    Example:
        >>> least_missed([1, 2, 3, 50, 51, 100])
        4
    """
    return min(range(1, len(epochs) - 1), key=lambda i: math.log(epochs[i + 1] / epochs[i - 1]))


def log_spaced(epochs: Sequence[int]) -> list[int]:
    """The epochs that stay of those looked at, counted from 1: the same as if surplus ones had left one by one.

    Example:
        >>> log_spaced(range(1, 1001))[-4:]
        [657, 802, 986, 1000]
    """
    kept: list[int] = []
    for epoch in epochs:
        kept.append(epoch)
        if len(kept) > MAX_LOOKS:
            del kept[least_missed(kept)]
    return kept


def packed(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A history as a checkpoint keeps it: every number of every look, and the vectors of few.

    Vectors stay at 40 looks at most, the first ones, then ever fewer, evenly spaced in the logarithm of the epoch, and
    those of more than 1,000 entries not at all: so many look by look are what `LookRecorder` keeps. 1,000 looks with 45
    numbers are 360 kB; their vectors of 100 classes 16 kB each. What is of the same looks and shape is one tensor, for
    each costs as much to save as its numbers.

    Returns:
        What `torch.load` reads with ``weights_only=True``; `unpacked` makes a history of it.
    """
    found: dict[str, dict[int, Any]] = {}
    for row, record in enumerate(history):
        for key, value in record.items():
            found.setdefault(key, {})[row] = value
    epochs = {row: record["epoch"] + 1 for row, record in enumerate(history)}
    spaced: dict[tuple[int, ...], list[int]] = {}
    tables: dict[tuple[Any, ...], dict[str, Tensor]] = {}
    for key, values in found.items():
        if any(isinstance(value, Tensor) for value in values.values()):
            values = _short_ones(values)
            rows = tuple(epochs[row] for row in values)
            kept = set(spaced.setdefault(rows, log_spaced(rows)))
            values = {row: value for row, value in values.items() if epochs[row] in kept}
        if values:
            column = _stacked(list(values.values()))
            tables.setdefault((tuple(values), column.dtype, column.shape[1:]), {})[key] = column
    return {
        "looks": len(history),
        "tables": [
            (list(columns), torch.tensor(rows, dtype=torch.int32, device="cpu"), torch.stack(list(columns.values()), 1))
            for (rows, *_), columns in tables.items()
        ],
    }


def unpacked(state: Mapping[str, Any] | Sequence[Record]) -> list[Record]:
    """The history that `packed` was given, with the vectors that stayed; older checkpoints have the history itself.

    Example:
        >>> unpacked(packed([{"epoch": 0, "step": 8, "nc/train/nc1": 0.5}]))
        [{'epoch': 0, 'step': 8, 'nc/train/nc1': 0.5}]
    """
    if not isinstance(state, Mapping):
        return list(state)
    history: list[Record] = [{} for _ in range(state["looks"])]
    for key, rows, values in _columns(state):
        found = values.tolist() if values.ndim == 1 else [vector.clone() for vector in values]
        for row, value in zip(rows.tolist(), found, strict=True):
            history[row][key] = value
    return history


def _columns(state: Mapping[str, Any]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Each key with its looks and values; older checkpoints have a pair of tensors by key."""
    for key, (rows, values) in state.get("columns", {}).items():
        yield key, rows, values
    for keys, rows, values in state.get("tables", ()):
        for place, key in enumerate(keys):
            yield key, rows, values[:, place]


def _short_ones(values: dict[int, Any]) -> dict[int, Tensor]:
    """The vectors that may stay, all of the last one's shape: earlier ones are of a head that had other classes."""
    shape = list(values.values())[-1].shape
    return {row: v for row, v in values.items() if v.shape == shape and 0 < v.numel() <= MAX_ENTRIES}


def _stacked(values: list[Any]) -> Tensor:
    """Vectors as the rows of a matrix; numbers in float64, epochs and steps in int64."""
    if isinstance(values[0], Tensor):
        return torch.stack(values)
    whole = all(isinstance(value, int) for value in values)
    return torch.tensor(values, dtype=torch.int64 if whole else torch.float64, device="cpu")
