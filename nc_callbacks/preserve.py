"""Data that changes itself when it is read, put back afterwards."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

_MOST_OBJECTS = 10_000
"""Beyond these, nothing is looked into: data held as a long list of samples is not state."""

_LARGEST_ARRAY = 2**16
"""Bytes up to which an array is state rather than data."""

_MOST_ARRAYS = 16 * 2**20
"""Bytes of all arrays together."""

_OPAQUE = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType, str, bytes)


@contextmanager
def preserved(*roots: Any) -> Iterator[None]:
    """Put back what reading a dataset changes in it: its random generators, counters, small arrays and collections.

    Looks into datasets, callables (transforms), objects of classes that stand beside a dataset's, and lists, tuples
    and dicts of these. What was not there before (a file opened when first read, a cache) stays.

    Args:
        roots: Datasets, samplers, iterables.

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
    restore = _restorers(roots)
    try:
        yield
    finally:
        for put_back in restore:
            put_back()


def _restorers(roots: tuple[Any, ...]) -> list[Callable[[], Any]]:
    restore: list[Callable[[], Any]] = []
    queue, seen = deque(roots), dict[int, Any]()
    modules = {type(root).__module__ for root in roots}
    arrays = 0
    while queue and len(seen) < _MOST_OBJECTS:
        thing = queue.popleft()
        if id(thing) in seen or _is_plain(thing) or isinstance(thing, _OPAQUE) or _is_lightning(thing):
            continue
        seen[id(thing)] = thing
        if (put_back := _of_generator(thing)) is not None:
            restore.append(put_back)
        elif isinstance(thing, Tensor | np.ndarray):
            if thing.nbytes <= _LARGEST_ARRAY and arrays + thing.nbytes <= _MOST_ARRAYS:
                arrays += thing.nbytes
                restore.append(_of_array(thing))
        elif isinstance(thing, list | set | dict | deque):
            if len(thing) <= _MOST_OBJECTS:
                restore.append(_of_collection(thing))
                queue.extend(thing.values() if isinstance(thing, dict) else thing)
        elif isinstance(thing, tuple):
            queue.extend(thing)
        elif isinstance(thing, Dataset) or callable(thing) or type(thing).__module__ in modules:
            if isinstance(thing, Dataset):
                modules.add(type(thing).__module__)
            restore.append(_of_attributes(thing))
            queue.extend(getattr(thing, "__dict__", {}).values())
    return restore


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, int | float | complex)


def _is_lightning(thing: Any) -> bool:
    """Trainers, modules and data modules have a state of their own, which a look takes care of."""
    return any(parent.__module__.split(".")[0] in ("lightning", "pytorch_lightning") for parent in type(thing).__mro__)


def _of_generator(thing: Any) -> Callable[[], Any] | None:
    if isinstance(thing, torch.Generator):
        state = thing.get_state()
        return lambda: thing.set_state(state)
    if isinstance(thing, random.Random):
        python_state = thing.getstate()
        return lambda: thing.setstate(python_state)
    if isinstance(thing, np.random.RandomState):
        old_numpy_state = thing.get_state()
        return lambda: thing.set_state(old_numpy_state)
    if isinstance(thing, np.random.Generator):
        numpy_state = thing.bit_generator.state
        return lambda: setattr(thing.bit_generator, "state", numpy_state)
    return None


def _of_array(array: Any) -> Callable[[], Any]:
    held = array.detach().clone() if isinstance(array, Tensor) else array.copy()

    def put_back() -> None:
        same = torch.equal(array, held) if isinstance(array, Tensor) else np.array_equal(array, held)
        if not same and isinstance(array, Tensor):
            with torch.no_grad():
                array.copy_(held)
        elif not same:
            array[...] = held

    return put_back


def _of_collection(collection: Any) -> Callable[[], Any]:
    held = collection.copy()

    def put_back() -> None:
        collection.clear()
        collection.extend(held) if isinstance(collection, list | deque) else collection.update(held)

    return put_back


def _of_attributes(thing: Any) -> Callable[[], Any]:
    # A None is kept for what is opened later.
    held = {
        name: value
        for name, value in getattr(thing, "__dict__", {}).items()
        if value is not None and (_is_plain(value) or isinstance(value, str | bytes | tuple))
    }
    return lambda: thing.__dict__.update(held) if held else None
