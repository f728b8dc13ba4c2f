"""How things of each kind are saved, and put back in place."""

from __future__ import annotations

import copy
import ctypes
import io
import itertools
import random
import re
import warnings
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from types import CellType, MethodWrapperType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

Restore = Callable[[], Any]

GENERATORS = (torch.Generator, random.Random, np.random.RandomState, np.random.Generator, np.random.BitGenerator)

CTYPES = (ctypes._SimpleCData, ctypes.Array, ctypes.Structure, ctypes.Union)

_EMPTY: list[Any] = [[], (), "", b"", range(0), {}, set(), {}.values(), {}.items()]

ITERATORS = frozenset(
    {
        *(kind for kind in vars(itertools).values() if isinstance(kind, type) and hasattr(kind, "__next__")),
        *map(type, map(iter, _EMPTY)),
        type(iter(range(2**70))),
        type(reversed([])),
        enumerate,
        zip,
        map,
        filter,
        reversed,
    }
)
"""Those whose place cannot be set, but which can be copied."""

COPIED = ITERATORS | {MethodWrapperType}
"""Types of what `copied` may copy."""

_MISSING: Any = object()


def generator_state(thing: Any) -> Any:
    """Where a random generator stands."""
    if isinstance(thing, torch.Generator | np.random.RandomState):
        return thing.get_state()
    if isinstance(thing, random.Random):
        return thing.getstate()
    return copy.deepcopy(getattr(thing, "bit_generator", thing).state)


def of_generator(thing: Any) -> Restore:
    """Of a generator of random numbers."""
    state = generator_state(thing)
    if isinstance(thing, torch.Generator | np.random.RandomState):
        return lambda: thing.set_state(state)
    if isinstance(thing, random.Random):
        return lambda: thing.setstate(state)
    return lambda: setattr(getattr(thing, "bit_generator", thing), "state", state)


def of_tensor(tensor: Tensor) -> Restore:
    """Values, storage, class and gradient; without a trace in autograd's version counter."""
    if is_lazy(tensor):
        return _of_lazy(tensor)
    kind, leaf, alias = type(tensor), tensor.is_leaf, tensor.data
    needs_grad, grad = tensor.requires_grad, tensor.grad if leaf else None
    try:
        held = alias.clone()
    except torch.OutOfMemoryError:
        held = alias.cpu()

    def put_back() -> None:
        if type(tensor) is not kind:
            tensor.__class__ = kind
        with torch.inference_mode(tensor.is_inference()), torch.no_grad():
            if tensor.data.data_ptr() != alias.data_ptr() or tensor.data.shape != alias.shape:
                tensor.data = alias
            alias.copy_(held)
        if leaf and tensor.requires_grad is not needs_grad:
            tensor.requires_grad_(needs_grad)
        if leaf and tensor.grad is not grad:
            tensor.grad = grad

    return put_back


def _of_lazy(tensor: Tensor) -> Restore:
    """A parameter or buffer without a shape, which gets one in its module's first forward pass."""
    kind = type(tensor)

    def put_back() -> None:
        if type(tensor) is not kind:
            tensor.grad = None
            tensor.data = torch.empty(0, device=tensor.device, dtype=tensor.dtype)
            tensor.__class__ = kind

    return put_back


def of_array(thing: np.ndarray) -> Restore:
    """Of a NumPy array."""
    held = thing.copy()

    def put_back() -> None:
        if not np.array_equal(thing, held):
            thing[...] = held

    return put_back


def of_file(file: Any) -> Restore | None:
    """Where an open file stands, and what is in one that is held in memory."""
    try:
        place = file.tell() if file.seekable() else None
    except (OSError, ValueError):
        return None
    if place is None:
        return None
    if not isinstance(file, io.BytesIO | io.StringIO):
        return lambda: file.seek(place)
    held: Any = file.getvalue()

    def put_back() -> None:
        if file.getvalue() != held:
            file.seek(0)
            file.truncate()
            file.write(held)
        file.seek(place)

    return put_back


def of_ctypes(thing: Any) -> Restore:
    """Memory of its own, perhaps shared by processes."""
    held = bytes(thing)
    return lambda: ctypes.memmove(ctypes.addressof(thing), held, len(held))


def of_cell(cell: CellType) -> Restore:
    """Of a variable that a closure holds."""
    held = contents(cell)

    def put_back() -> None:
        if held is _MISSING and contents(cell) is not _MISSING:
            del cell.cell_contents
        elif contents(cell) is not held:
            cell.cell_contents = held

    return put_back


def contents(cell: CellType) -> Any:
    """What the cell holds."""
    try:
        return cell.cell_contents
    except ValueError:
        return _MISSING


def of_global(names: dict[str, Any], name: str) -> Restore:
    """Of a global name."""
    held = names.get(name, _MISSING)

    def put_back() -> None:
        if held is _MISSING:
            names.pop(name, None)
        elif names.get(name, _MISSING) is not held:
            names[name] = held

    return put_back


def slots_of(thing: Any) -> list[str]:
    """Names of the slots of an object."""
    found = []
    for kind in type(thing).__mro__:
        names = vars(kind).get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            hidden = name.startswith("__") and not name.endswith("__")
            found.append(f"_{kind.__name__.lstrip('_')}{name}" if hidden else name)
    return [name for name in found if name not in ("__dict__", "__weakref__")]


def of_slots(thing: Any, names: list[str]) -> Restore:
    """Of the slots of an object."""
    held = {name: getattr(thing, name, _MISSING) for name in names}

    def put_back() -> None:
        for name, value in held.items():
            if value is _MISSING:
                with suppress(AttributeError):
                    object.__delattr__(thing, name)
            elif getattr(thing, name, _MISSING) is not value:
                object.__setattr__(thing, name, value)

    return put_back


def of_class(kind: type) -> Restore:
    """Of the attributes of a class."""
    held = {name: value for name, value in vars(kind).items() if not name.startswith("__")}

    def put_back() -> None:
        for name in [name for name in vars(kind) if not name.startswith("__") and name not in held]:
            type.__delattr__(kind, name)
        for name, value in held.items():
            if vars(kind).get(name, _MISSING) is not value:
                type.__setattr__(kind, name, value)

    return put_back


def same_items(one: Any, other: Any) -> bool:
    """Whether two collections of a kind hold the same objects, in the same order where they have one."""
    if len(one) != len(other):
        return False
    if isinstance(one, dict):
        pairs = zip(one.items(), other.items(), strict=True)
        return all(a is b and v is w for (a, v), (b, w) in pairs)
    if isinstance(one, set):
        return set(map(id, one)) == set(map(id, other))
    return all(a is b for a, b in zip(one, other, strict=True))


def refill(collection: Any, held: Any) -> None:
    """Make a collection hold what is held, whatever its class has made of the methods."""
    if isinstance(collection, OrderedDict):
        OrderedDict.clear(collection)
        for key, value in held.items():
            OrderedDict.__setitem__(collection, key, value)
    elif isinstance(collection, dict):
        dict.clear(collection)
        dict.update(collection, held)
    elif isinstance(collection, set):
        set.clear(collection)
        set.update(collection, held)
    elif isinstance(collection, deque):
        deque.clear(collection)
        deque.extend(collection, held)
    elif isinstance(collection, list):
        list.__setitem__(collection, slice(None), held)
    else:
        collection[:] = held


def copy_of(collection: Any) -> Any:
    """What it holds, apart from it."""
    for kind in (dict, list, set, deque):
        if isinstance(collection, kind):
            return kind(collection)
    return collection[:]


COLLECTIONS = (dict, list, set, deque, bytearray, array)


def copied(iterator: Any) -> Any:
    """A copy of an iterator that goes on from the same place, or of its bound method; None where there is none."""
    if type(iterator) is MethodWrapperType:
        own = copied(iterator.__self__)
        return None if own is None else getattr(own, iterator.__name__)
    if type(iterator) not in ITERATORS:
        return None
    if type(iterator) is itertools.count and (steps := re.fullmatch(r"count\((-?\d+)(?:, (-?\d+))?\)", repr(iterator))):
        return itertools.count(int(steps[1]), int(steps[2] or 1))
    with suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return copy.deepcopy(iterator)
    return None
