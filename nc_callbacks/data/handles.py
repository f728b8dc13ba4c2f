"""What data holds: whether reading it changes nothing, and whether a forked process can read it."""

from __future__ import annotations

import functools
import multiprocessing.queues
from typing import Any

from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from nc_callbacks.state.snapshot import Snapshot

_BOUND = frozenset({"threading", "_thread", "concurrent", "asyncio", "socket", "ssl", "subprocess", "queue", "sqlite3"})
"""Packages whose objects work in their own process alone."""

_KNOWN = frozenset(
    {
        *("builtins", "collections", "itertools", "functools", "types", "operator", "_operator", "weakref"),
        *("array", "io", "_io", "datetime", "decimal", "fractions", "re", "random", "_random", "ctypes", "_ctypes"),
        *("pathlib", "zlib", "mmap", "abc", "typing", "enum", "multiprocessing", "_multiprocessing", "_abc"),
        *("numpy", "torch", "torchvision", "PIL", "pandas", "pyarrow", "scipy", "sklearn", "_functools"),
    }
)
"""Packages whose compiled types a forked process can use."""


def is_without_state(dataset: Any) -> bool:
    """Whether a dataset is known to give a sample and change nothing."""
    if type(dataset) is Subset:
        return is_without_state(dataset.dataset)
    if type(dataset) is ConcatDataset:
        return all(map(is_without_state, dataset.datasets))
    return type(dataset) in (TensorDataset, list, tuple)


def can_be_forked(iterable: Any) -> bool:
    """Whether all that an iterable holds can be used in a forked process."""
    snapshot = Snapshot(iterable, exact=False, most_objects=10_000, largest=0, most_bytes=0)
    snapshot.put_back()
    return all(map(_can_be_forked, snapshot.seen.values()))


def _can_be_forked(thing: Any) -> bool:
    if isinstance(thing, Tensor):
        return thing.device.type == "cpu"
    kind: Any = type(thing)
    return _is_of_all_processes(kind)


@functools.lru_cache(4096)
def _is_of_all_processes(kind: Any) -> bool:
    if issubclass(kind, multiprocessing.queues.Queue | multiprocessing.queues.SimpleQueue):
        return False
    packages = {parent.__module__.partition(".")[0] for parent in kind.__mro__}
    if not packages.isdisjoint(_BOUND):
        return False
    compiled = not any("__dict__" in vars(parent) or "__slots__" in vars(parent) for parent in kind.__mro__)
    return not compiled or kind.__module__.partition(".")[0] in _KNOWN
