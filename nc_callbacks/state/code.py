"""What functions and classes hold on to besides their arguments: closures, defaults, globals, class attributes."""

from __future__ import annotations

import functools
import sys
import sysconfig
from collections.abc import Iterator
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, MethodWrapperType
from typing import Any

_INSTALLED = tuple(
    folder for folder in {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")} if folder is not None
)

_LIBRARIES = frozenset(
    {"torch", "torchvision", "torchmetrics", "lightning", "pytorch_lightning", "lightning_fabric", "nc_callbacks"}
)
"""Whose classes and functions keep nothing beside their instances that a forward pass changes."""

CODE = (
    *(FunctionType, MethodType, BuiltinFunctionType, MethodWrapperType),
    *(functools.partial, functools._lru_cache_wrapper),
)
"""What `held_by` looks behind."""


@functools.cache
def is_of_a_user(module: str) -> bool:
    """Whether a module of that name is somebody's own code, neither a known library's nor installed."""
    root = module.partition(".")[0]
    if root in _LIBRARIES or (root in sys.stdlib_module_names and root != "__main__"):
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is None or not file.startswith(_INSTALLED)


@functools.cache
def _names(code: CodeType) -> frozenset[str]:
    """Names that code (with the functions in it) may look up or set outside of itself."""
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return frozenset(code.co_names).union(*inner)


def held_by(function: Any) -> list[Any]:
    """What a function of any kind refers to, but for its globals and the contents of its cells."""
    if isinstance(function, functools.partial):
        return [function.func, *function.args, *function.keywords.values()]
    if isinstance(function, MethodType | BuiltinFunctionType | MethodWrapperType):
        return [function.__self__, getattr(function, "__func__", None)]
    if isinstance(function, FunctionType):
        return [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), function.__dict__]
    return [getattr(function, "__wrapped__", None)]


def cells_of(function: FunctionType) -> list[CellType]:
    """The cells of its closure."""
    return list(function.__closure__ or ())


def globals_of(function: FunctionType) -> list[tuple[dict[str, Any], str]]:
    """Which globals of a user's function it may read or set: dict and name. Names are there that may be attributes."""
    if not is_of_a_user(function.__module__ or ""):
        return []
    return [(function.__globals__, name) for name in _names(function.__code__) if not name.startswith("__")]


def users_classes(kind: type) -> Iterator[type]:
    """The class and its parents, as far as they are a user's."""
    return (parent for parent in kind.__mro__ if is_of_a_user(parent.__module__ or ""))


def unwrapped(attribute: Any) -> list[Any]:
    """Functions behind a method, static method, class method or property of a class."""
    if isinstance(attribute, staticmethod | classmethod):
        return [attribute.__func__]
    if isinstance(attribute, property):
        return [function for function in (attribute.fget, attribute.fset) if function is not None]
    return [attribute]
