"""How far a walk over objects goes: what is not looked into, and what is kept account of elsewhere."""

from __future__ import annotations

import enum
import functools
from collections import OrderedDict, deque
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from nc_callbacks.state.kinds import CTYPES, GENERATORS

LEAVES = frozenset(
    {*(int, float, complex, bool, str, bytes, type(None), type(...), slice, range, np.bool_, np.dtype)}
    | {torch.dtype, torch.device, torch.Size, torch.memory_format, torch.layout, np.float32, np.float64, np.int64}
)
"""Types of what cannot change and holds nothing."""

PLAIN = frozenset({dict, list, set, deque, bytearray, OrderedDict})
"""Collections without attributes."""

_CLOSED = frozenset(
    {
        *("torch", "lightning", "pytorch_lightning", "lightning_fabric", "nc_callbacks"),
        *("threading", "_thread", "concurrent", "asyncio", "socket", "ssl", "subprocess", "multiprocessing"),
        *("logging", "importlib", "weakref", "wandb", "tensorboard", "matplotlib"),
    }
)
"""Packages whose objects are not looked into, but for those of the classes below."""

_OPEN = (nn.Module, Tensor, torch.Generator, Dataset, Sampler, DataLoader)

_OPEN_NAMES = ("LightningDataModule", "SynchronizedBase", "WeakKeyDictionary", "WeakValueDictionary", "WeakSet")


def is_number(value: Any) -> bool:
    """Whether a value is a plain number."""
    return isinstance(value, int | float | complex | np.generic)


def is_generator(value: Any) -> bool:
    """Whether a value is a generator of random numbers."""
    return isinstance(value, GENERATORS)


def is_shard(module: nn.Module) -> bool:
    """Whether a module's parameters are a share of the whole ones."""
    return is_sharding(module) or any(
        hasattr(p, "device_mesh") or getattr(p, "_is_flat_param", False) for p in module._parameters.values()
    )


def is_of_shards(name: str, value: Any) -> bool:
    """Whether an attribute of a module is what sharding sets anew, and keeps account of elsewhere."""
    return name in ("_parameters", "_buffers", "_modules") or isinstance(value, Tensor)


def is_sharding(thing: Any) -> bool:
    """Whether it wraps a module to shard it."""
    kind: Any = type(thing)
    return "FullyShardedDataParallel" in _parents(kind)


def is_lightning_module(thing: Any) -> bool:
    """Whether it is a LightningModule, of either package."""
    kind: Any = type(thing)
    return _parents(kind).get("LightningModule") in ("lightning", "pytorch_lightning")


def is_closed(thing: Any) -> bool:
    """Whether an object is not looked into."""
    kind: Any = type(thing)
    return _is_closed(kind)


@functools.lru_cache(4096)
def _parents(kind: Any) -> dict[str, str]:
    """Names of a class and its parents, and the packages that they are from."""
    return {parent.__name__: parent.__module__.partition(".")[0] for parent in kind.__mro__}


@functools.lru_cache(4096)
def _is_closed(kind: Any) -> bool:
    if issubclass(kind, ModuleType | enum.Enum | np.dtype | np.generic):
        return True
    if issubclass(kind, _OPEN) or not _parents(kind).keys().isdisjoint(_OPEN_NAMES):
        return False
    return not _CLOSED.isdisjoint(_parents(kind).values()) and kind not in CTYPES
