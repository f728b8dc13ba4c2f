"""Which state differs between two moments."""

from __future__ import annotations

import functools
import hashlib
import io
import random
import weakref
from array import array
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import FunctionType, GeneratorType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nc_callbacks.state import code, kinds
from nc_callbacks.state.kinds import CTYPES, GENERATORS, ITERATORS
from nc_callbacks.state.limits import LEAVES, is_closed
from nc_callbacks.state.settings import global_settings

_MOST = 200_000
"""Beyond so many objects, nothing further is looked into."""

_TORCHS = ("_parameters", "_buffers", "_modules")
"""Attributes of modules whose contents are named as if they were the module's."""


@dataclass(frozen=True)
class Fingerprint:
    """Digests of the state that can be reached from some objects, of the random states and of torch's settings.

    Larger than what `nc_callbacks.state.snapshot.Snapshot` puts back: arrays of any size, iterators and generators,
    places in files, all that users' functions and classes refer to.

    Example:
        >>> counts = {"reads": 0}
        >>> before = Fingerprint.of(data=counts)
        >>> counts["reads"] += 1
        >>> before.differences(Fingerprint.of(data=counts))
        ['data[reads]']
    """

    digests: dict[str, str]
    """By what a reader would write to get there."""

    @classmethod
    def of(cls, **roots: Any) -> Fingerprint:
        """What can be reached from these, by name."""
        found = {
            "Python's random numbers": _digest(random.getstate()),
            "NumPy's random numbers": _digest(np.random.get_state()),  # noqa: NPY002 - the global state is meant
            "torch's random numbers": _digest(torch.default_generator.get_state()),
        }
        if torch.cuda.is_initialized():
            found["torch's random numbers on the GPUs"] = _digest(torch.cuda.get_rng_state_all())
        found |= {name: _digest(value) for name, value in global_settings().items()}
        queue: deque[tuple[str, Any]] = deque(roots.items())
        # Kept, so that no other object gets the identity of one that was seen.
        seen: dict[int, Any] = {}
        while queue and len(seen) < _MOST:
            path, thing = queue.popleft()
            if id(thing) in seen and type(thing) not in LEAVES:
                continue
            seen[id(thing)] = thing
            # What refuses to be looked into is left out.
            with suppress(Exception):
                own, parts = _seen(path, thing)
                if own is not None:
                    found[path] = own
                queue.extend(parts)
        return cls(found)

    def differences(self, other: Fingerprint) -> list[str]:
        """What changed, came or went."""
        paths = {**self.digests, **other.digests}
        return [path for path in paths if self.digests.get(path) != other.digests.get(path)]


def _digest(value: Any) -> str:
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous()
        raw = value.reshape(-1).view(torch.uint8).numpy() if value.numel() else b""
        return hashlib.blake2b(raw, digest_size=12).hexdigest() + f" {value.dtype} {tuple(value.shape)}"
    if isinstance(value, np.ndarray):
        raw = repr(value.tolist()).encode() if value.dtype.hasobject else np.ascontiguousarray(value).tobytes()
        return hashlib.blake2b(raw, digest_size=12).hexdigest()
    if isinstance(value, tuple | list):
        return hashlib.blake2b("".join(map(_digest, value)).encode(), digest_size=12).hexdigest()
    return repr(value)


def _seen(path: str, thing: Any) -> tuple[str | None, Iterator[tuple[str, Any]]]:
    """Digest of an object itself, and what it holds, by path."""
    nothing: Iterator[tuple[str, Any]] = iter(())
    if type(thing) in LEAVES:
        return _digest(thing), nothing
    if isinstance(thing, Tensor):
        flags = f" {type(thing).__name__} {thing.requires_grad}" if thing.is_leaf else ""
        return _digest(thing) + flags, nothing
    if isinstance(thing, np.ndarray):
        return _digest(thing), nothing
    if isinstance(thing, GENERATORS):
        return _digest(kinds.generator_state(thing)), nothing
    if isinstance(thing, GeneratorType):
        frame = thing.gi_frame
        place = "" if frame is None else f"{frame.f_lasti} {sorted(frame.f_locals)}"
        return f"generator {place}", iter([] if frame is None else _named(path, frame.f_locals))
    if type(thing) in ITERATORS:
        return None, iter([(f"{path} (an iterator)", thing.__reduce__())])
    if isinstance(thing, CTYPES):
        return repr(bytes(thing)), nothing
    if isinstance(thing, io.IOBase):
        return f"closed {thing.closed}" + (
            "" if thing.closed or not thing.seekable() else f" at {thing.tell()}"
        ), nothing
    if isinstance(thing, code.CODE):
        return _code_digest(thing), _code_parts(path, thing)
    if isinstance(thing, type):
        return None, _class_parts(path, thing)
    if isinstance(thing, weakref.ref):
        return str(thing() is None), iter([(path, thing())])
    if is_closed(thing):
        return None, nothing
    return _type_of(thing), _parts(path, thing)


def _type_of(thing: Any) -> str:
    own: Any = ""
    if isinstance(thing, dict):
        own = _digest([repr(key) if type(key) in LEAVES else type(key).__name__ for key in thing])
    elif isinstance(thing, bytearray | array):
        own = bytes(thing)
    elif isinstance(thing, kinds.COLLECTIONS):
        own = len(thing)
    return f"{type(thing).__module__}.{type(thing).__qualname__} {own}"


def _parts(path: str, thing: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(thing, dict):
        yield from ((f"{path}[{key}]", value) for key, value in thing.items())
    elif isinstance(thing, set | frozenset):
        yield f"{path} (its members)", sorted(map(repr, thing))
    elif isinstance(thing, list | tuple | deque):
        yield from ((f"{path}[{place}]", value) for place, value in enumerate(thing))
    for name, value in {**getattr(thing, "__dict__", {}), **_slots(thing)}.items():
        if isinstance(thing, nn.Module) and name in _TORCHS:
            yield from _named(path, value)
        else:
            yield f"{path}.{name}", value
    for parent in code.users_classes(type(thing)):
        yield f"class {parent.__qualname__}", parent


def _named(path: str, values: Any) -> list[tuple[str, Any]]:
    return [(f"{path}.{name}", value) for name, value in values.items()]


def _slots(thing: Any) -> dict[str, Any]:
    return {name: getattr(thing, name) for name in kinds.slots_of(thing) if hasattr(thing, name)}


def _code_digest(function: Any) -> str | None:
    return repr(function.cache_info()) if isinstance(function, functools._lru_cache_wrapper) else None


def _code_parts(path: str, function: Any) -> Iterator[tuple[str, Any]]:
    yield from ((f"{path} (held)", part) for part in code.held_by(function) if part is not None)
    if not isinstance(function, FunctionType):
        return
    for name, cell in zip(function.__code__.co_freevars, code.cells_of(function), strict=True):
        yield f"{name} around {function.__qualname__}", kinds.contents(cell)
    for names, name in code.globals_of(function):
        if name in names:
            yield f"{name} of {function.__module__}", names[name]


def _class_parts(path: str, kind: type) -> Iterator[tuple[str, Any]]:
    if not code.is_of_a_user(kind.__module__ or ""):
        return
    for name, value in vars(kind).items():
        if not name.startswith("__") or not isinstance(value, str | tuple | dict):
            for part in code.unwrapped(value):
                yield f"{kind.__qualname__}.{name}", part
