"""Data that changes itself when it is read, put back afterwards."""

from __future__ import annotations

import functools
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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

_STATE = (int, float, complex, str, bytes, tuple, list, set, dict, deque, Tensor, np.ndarray, np.generic)
"""Attributes of these types are state that reading may set anew; anything else may be a handle."""

_GENERATORS = (torch.Generator, random.Random, np.random.RandomState, np.random.Generator)

_OPAQUE = (type, ModuleType, BuiltinFunctionType, str, bytes)


@contextmanager
def preserved(*roots: Any) -> Iterator[None]:
    """Put back what reading a dataset changes in it: its random generators, counters, small arrays and collections.

    Looks into datasets, functions and other callables (transforms), objects of classes that stand beside a dataset's,
    and lists, tuples and dicts of these. What was not there before (a file opened when first read, a cache) stays,
    except for numbers and random generators.

    Args:
        roots: Datasets, samplers, iterables, functions.

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
            # What refuses to be changed is left as it is.
            with suppress(Exception):
                put_back()


def _restorers(roots: tuple[Any, ...]) -> list[Callable[[], Any]]:
    restore: list[Callable[[], Any]] = []
    queue, seen = deque(roots), dict[int, Any]()
    modules = {type(root).__module__ for root in roots if isinstance(root, Dataset)}
    arrays = 0
    while queue and len(seen) < _MOST_OBJECTS:
        thing = queue.popleft()
        if (
            id(thing) in seen
            or thing is None
            or isinstance(thing, _OPAQUE)
            or _is_number(thing)
            or _is_lightning(thing)
        ):
            continue
        seen[id(thing)] = thing
        if isinstance(thing, _GENERATORS):
            restore.append(_of_generator(thing))
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
        elif isinstance(thing, FunctionType | MethodType | functools.partial):
            queue.extend(_behind(thing))
        elif isinstance(thing, Dataset) or callable(thing) or type(thing).__module__ in modules:
            if isinstance(thing, Dataset):
                modules.add(type(thing).__module__)
            restore.append(_of_attributes(thing))
            queue.extend(getattr(thing, "__dict__", {}).values())
    return restore


def _behind(function: Any) -> list[Any]:
    """What a function holds on to."""
    if isinstance(function, functools.partial):
        return [function.func, *function.args, *function.keywords.values()]
    if isinstance(function, MethodType):
        return [function.__self__]
    return [cell.cell_contents for cell in function.__closure__ or () if not _is_empty(cell)]


def _is_empty(cell: Any) -> bool:
    try:
        return cell.cell_contents is cell
    except ValueError:
        return True


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | complex | np.generic)


def _is_opaque(thing: Any) -> bool:
    """What holds no state, and trainers, modules and data modules, whose state a look takes care of."""
    return thing is None or isinstance(thing, _OPAQUE) or _is_number(thing) or _is_lightning(thing)


def _is_lightning(thing: Any) -> bool:
    return any(parent.__module__.split(".")[0] in ("lightning", "pytorch_lightning") for parent in type(thing).__mro__)


def _of_generator(thing: Any) -> Callable[[], Any]:
    if isinstance(thing, torch.Generator | np.random.RandomState):
        state: Any = thing.get_state()
        return lambda: thing.set_state(state)
    if isinstance(thing, random.Random):
        python_state = thing.getstate()
        return lambda: thing.setstate(python_state)
    numpy_state = thing.bit_generator.state
    return lambda: setattr(thing.bit_generator, "state", numpy_state)


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
        if _identities(collection) == _identities(held):
            return
        collection.clear()
        collection.extend(held) if isinstance(collection, list | deque) else collection.update(held)

    return put_back


def _identities(collection: Any) -> Any:
    if isinstance(collection, dict):
        return [(key, id(value)) for key, value in collection.items()]
    return set(map(id, collection)) if isinstance(collection, set) else list(map(id, collection))


def _of_attributes(thing: Any) -> Callable[[], Any]:
    attributes = getattr(thing, "__dict__", {})
    held = dict(attributes)

    def put_back() -> None:
        for name, value in list(attributes.items()):
            # A generator or a number that was made when first read would go on from where the look left it.
            if held.get(name) is None and (_is_number(value) or isinstance(value, _GENERATORS)):
                if name in held:
                    attributes[name] = None
                else:
                    del attributes[name]
        attributes.update({name: value for name, value in held.items() if isinstance(value, _STATE + _GENERATORS)})

    return put_back
