"""Data that changes itself when it is read, put back afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nc_callbacks.state.snapshot import Snapshot

_MOST_OBJECTS = 10_000
"""Beyond these, nothing is looked into: data held as a long list of samples is not state."""

_LARGEST_ARRAY = 2**16
"""Bytes up to which an array is state rather than data."""

_MOST_ARRAYS = 16 * 2**20
"""Bytes of all arrays together."""


@contextmanager
def preserved(*roots: Any) -> Iterator[None]:
    """Put back what reading data changes in it: its random generators, counters, small arrays and collections.

    Looks into datasets, functions and other callables (transforms), the objects and collections in them, closures,
    attributes of users' classes and the globals that their functions name. What was not there before (a file opened
    when first read, entries of a dict that is a cache) stays, except for numbers and random generators.

    Args:
        roots: Datasets, samplers, iterables, functions, data modules.

    Example:
        >>> class Counting(torch.utils.data.Dataset):
        ...     reads = 0
        ...     def __getitem__(self, index):
        ...         self.reads += 1
        >>> data = Counting()
        >>> data[0]
        >>> with preserved(data):
        ...     data[1]
        >>> data.reads
        1
    """
    snapshot = Snapshot(
        *roots, exact=False, most_objects=_MOST_OBJECTS, largest=_LARGEST_ARRAY, most_bytes=_MOST_ARRAYS
    )
    try:
        yield
    finally:
        snapshot.put_back()
