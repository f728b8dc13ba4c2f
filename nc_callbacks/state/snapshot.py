"""Everything that can be reached from some objects, saved and put back in place."""

from __future__ import annotations

import functools
import io
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable
from contextlib import suppress
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nc_callbacks.state import code, kinds
from nc_callbacks.state.kinds import COLLECTIONS, CTYPES, GENERATORS, Restore
from nc_callbacks.state.limits import (
    LEAVES,
    PLAIN,
    is_closed,
    is_generator,
    is_lightning_module,
    is_number,
    is_of_shards,
    is_shard,
    is_sharding,
)


class Snapshot:
    """State that can be reached from some objects: attributes, collections, tensors, arrays, random generators.

    Closures, default arguments, attributes of users' classes and the globals that their functions name are part of it;
    trainers, loggers, locks, sockets and threads are not entered. Iterators that cannot be set back are replaced where
    they are held by copies, until `put_back`.

    Args:
        roots: Where to begin.
        exact: Everything goes back; otherwise what was opened when first read (a handle, a cache) stays.
        most_objects: Beyond these, nothing further is looked into.
        largest: Bytes up to which an array is saved; parameters and buffers of modules always are, where `exact`.
        most_bytes: Bytes of all arrays together.
    """

    def __init__(
        self,
        *roots: Any,
        exact: bool = True,
        most_objects: int = 100_000,
        largest: int = 2**30,
        most_bytes: int = 2**30,
    ) -> None:
        self.exact, self.largest, self.left, self.most_objects = exact, largest, most_bytes, most_objects
        self.sharded = any(isinstance(root, nn.Module) and any(map(is_shard, root.modules())) for root in roots)
        self._restore: list[Restore] = []
        self._empty: list[OrderedDict] = []
        self.seen: dict[int, Any] = {}
        self._names: set[tuple[int, str]] = set()
        self._queue = deque(roots)
        while self._queue and len(self.seen) < most_objects:
            # What refuses to be looked into is left out.
            with suppress(Exception):
                self._visit(self._queue.popleft())

    def put_back(self) -> None:
        """Make everything as it was."""
        for collection in self._empty:
            if collection:
                collection.clear()
        for put_back in self._restore:
            # What refuses to be changed is left as it is.
            with suppress(Exception):
                put_back()

    def _visit(self, thing: Any) -> None:
        if type(thing) in LEAVES or id(thing) in self.seen:
            return
        self.seen[id(thing)] = thing
        if isinstance(thing, code.CODE):
            self._code(thing)
        elif isinstance(thing, type):
            if code.is_of_a_user(thing.__module__ or ""):
                self._class(thing)
        elif isinstance(thing, weakref.ref):
            self._enter([thing()])
        elif isinstance(thing, CTYPES):
            self._restore.append(kinds.of_ctypes(thing))
        elif not is_closed(thing) and (self.exact or not is_lightning_module(thing)):
            self._object(thing)

    def _object(self, thing: Any) -> None:
        if isinstance(thing, GENERATORS):
            self._restore.append(kinds.of_generator(thing))
        elif isinstance(thing, Tensor | np.ndarray):
            self._array(thing)
        elif isinstance(thing, tuple | frozenset):
            self._enter(thing)
        elif isinstance(thing, io.IOBase):
            if (restore := kinds.of_file(thing)) is not None:
                self._restore.append(restore)
        elif isinstance(thing, torch.jit.ScriptModule):
            self._script(thing)
        else:
            if isinstance(thing, COLLECTIONS):
                self._collection(thing)
            if type(thing) not in PLAIN:
                self._attributes(thing)

    def _enter(self, things: Iterable[Any]) -> None:
        self._queue.extend(thing for thing in things if type(thing) not in LEAVES)

    def _array(self, thing: Any, always: bool = False) -> None:
        if always or (thing.nbytes <= self.largest and thing.nbytes <= self.left):
            self.left -= 0 if always else thing.nbytes
            with suppress(Exception):
                self._restore.append(kinds.of_tensor(thing) if isinstance(thing, Tensor) else kinds.of_array(thing))

    def _collection(self, thing: Any) -> None:
        if not self.exact and len(thing) > self.most_objects:
            return
        held = kinds.copy_of(thing)
        # A function that knew this snapshot would keep it, and all that it holds, until garbage is searched for.
        may_grow = not self.exact and isinstance(thing, dict) and not isinstance(thing, defaultdict)

        def put_back() -> None:
            if kinds.same_items(thing, held):
                return
            if may_grow and _has_grown(thing, held):
                # A number or a generator would go on from where it was left.
                for key in [k for k, v in thing.items() if k not in held and (is_number(v) or is_generator(v))]:
                    del thing[key]
                return
            kinds.refill(thing, held)

        self._restore.append(put_back)
        if isinstance(thing, dict):
            self._hold(thing, held.items())
        elif isinstance(thing, list | deque):
            self._hold(thing, enumerate(held))
        elif isinstance(thing, set):
            self._enter(held)

    def _attributes(self, thing: Any) -> None:
        attributes = getattr(thing, "__dict__", None)
        for parent in code.users_classes(type(thing)):
            self._visit(parent)
        if slots := kinds.slots_of(thing):
            self._restore.append(kinds.of_slots(thing, slots))
            self._enter(getattr(thing, name, None) for name in slots)
        if not isinstance(attributes, dict):
            return
        held = dict(attributes)
        if isinstance(thing, nn.Module) and self.exact:
            if is_sharding(thing):
                self._enter(thing.children())
                return
            self._tensors(thing)
            if self.sharded:
                held = {name: value for name, value in held.items() if not is_of_shards(name, value)}
                self._restore.append(functools.partial(attributes.update, held))
                self._enter(thing.children())
            else:
                self._restore.append(functools.partial(_put_back_module, thing, type(thing), attributes, held))
        elif self.exact:
            self._restore.append(functools.partial(_put_back_attributes, attributes, held))
        else:
            self._restore.append(functools.partial(_put_back_state, attributes, held))
        self._hold(attributes, held.items())

    def _hold(self, holder: Any, items: Iterable[tuple[Any, Any]]) -> None:
        """Visit what a holder has under its keys, copies of iterators in the place of those that cannot be set back."""
        for key, value in items:
            kind = type(value)
            if kind in LEAVES:
                continue
            if kind in kinds.COPIED and (own := kinds.copied(value)) is not None:
                holder[key] = own
            elif kind is OrderedDict and not value:
                # Modules have a dozen of these each, for hooks.
                self._empty.append(value)
            else:
                self._queue.append(value)

    def _tensors(self, module: nn.Module) -> None:
        """Parameters and buffers, of any size; shards are kept account of elsewhere, and no forward pass sets them."""
        for tensor in [*([] if self.sharded else module._parameters.values()), *module._buffers.values()]:
            if tensor is not None and id(tensor) not in self.seen:
                self.seen[id(tensor)] = tensor
                self._array(tensor, always=True)
        if self.sharded:
            self._restore.append(functools.partial(_put_back_attributes, module._buffers, dict(module._buffers)))

    def _script(self, thing: Any) -> None:
        """A scripted module, whose attributes live outside of Python."""
        names = thing._concrete_type.get_attributes() if hasattr(thing, "_concrete_type") else ()
        values = {name: getattr(thing, name) for name in names if hasattr(thing, name)}
        values = {name: value for name, value in values.items() if not isinstance(value, nn.Module)}
        for tensor in [*thing.parameters(recurse=False), *thing.buffers(recurse=False)]:
            self._array(tensor, always=True)
        kept = {name: value for name, value in values.items() if not isinstance(value, nn.Parameter)}

        def put_back() -> None:
            for name, value in kept.items():
                setattr(thing, name, value)

        self._restore.append(put_back)
        self._enter([*values.values(), *thing.children()])

    def _class(self, kind: type) -> None:
        self._restore.append(kinds.of_class(kind))
        for name, value in list(vars(kind).items()):
            if (own := kinds.copied(value)) is not None:
                type.__setattr__(kind, name, own)
        held = [part for name, value in vars(kind).items() if name != "__dict__" for part in code.unwrapped(value)]
        self._enter(held)

    def _code(self, function: Any) -> None:
        if isinstance(function, functools.partial):
            self._partial(function)
        self._enter(code.held_by(function))
        if not isinstance(function, FunctionType):
            return
        for cell in code.cells_of(function):
            if id(cell) in self.seen:
                continue
            self.seen[id(cell)] = cell
            self._restore.append(kinds.of_cell(cell))
            value = kinds.contents(cell)
            if (own := kinds.copied(value)) is not None:
                cell.cell_contents = own
            else:
                self._enter([value])
        for names, name in code.globals_of(function):
            if (id(names), name) in self._names:
                continue
            self._names.add((id(names), name))
            self._restore.append(kinds.of_global(names, name))
            if name in names:
                self._hold(names, [(name, names[name])])

    def _partial(self, function: Any) -> None:
        own = [kinds.copied(argument) for argument in function.args]
        if any(argument is not None for argument in own):
            given = function.__reduce__()[2]
            self._restore.append(lambda: function.__setstate__(given))
            args = tuple(new if new is not None else old for new, old in zip(own, function.args, strict=True))
            function.__setstate__((given[0], args, *given[2:]))


def _has_grown(thing: dict, held: dict) -> bool:
    """Whether it has what is held, and more."""
    return len(thing) > len(held) and all(key in thing and thing[key] is value for key, value in held.items())


def _put_back_module(module: nn.Module, kind: type, attributes: dict, held: dict) -> None:
    if type(module) is not kind:
        module.__class__ = kind
    _put_back_attributes(attributes, held)


def _put_back_attributes(attributes: dict, held: dict) -> None:
    if not kinds.same_items(attributes, held):
        kinds.refill(attributes, held)


_STATE = (int, float, complex, str, bytes, tuple, *COLLECTIONS, Tensor, np.ndarray, np.generic, *GENERATORS)
"""Attributes of these types are state that reading may set anew; anything else may be a handle."""


def _put_back_state(attributes: dict, held: dict) -> None:
    for name, value in list(attributes.items()):
        # A generator or a number that was made when first read would go on from where it was left.
        if held.get(name) is None and (is_number(value) or is_generator(value)):
            if name in held:
                attributes[name] = None
            else:
                del attributes[name]
    kept = (*_STATE, *kinds.COPIED)
    attributes.update({name: value for name, value in held.items() if isinstance(value, kept)})
