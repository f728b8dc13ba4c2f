"""Hooks that belong to one module."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from torch import nn


class Hook:
    """What is called where one module runs, and never where a copy of it does.

    A module that is copied or pickled while it is watched takes along a hook that does nothing.

    Args:
        module: The one that is watched.
        call: What a hook of torch's is called with.
    """

    def __init__(self, module: nn.Module, call: Callable[..., Any]) -> None:
        self.module, self.call = module, call

    def __call__(self, module: nn.Module, *args: Any) -> Any:
        """Act for the module that is watched, and for no copy of it."""
        return self.call(module, *args) if module is self.module else None

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _nothing()

    def __reduce__(self) -> Any:
        # Of the standard library, so that it can be loaded anywhere.
        return getattr, (contextlib.nullcontext(), "__exit__")


def _nothing() -> Callable[..., None]:
    return contextlib.nullcontext().__exit__
