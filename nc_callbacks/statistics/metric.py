"""Common base of the statistics as torchmetrics Metrics."""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric


class _Sealed:
    """Carries a result past torchmetrics, which squeezes one-element tensors and refuses frozen dataclasses."""

    def __init__(self, result: Any) -> None:
        self.result = result


class StreamingMetric(Metric):
    """A metric whose states are updated in place, also those that were made in inference mode.

    Its memory is free as soon as nobody holds it. torchmetrics keeps `update` and `compute`, wrapped, in each metric,
    which so holds itself until garbage is searched for. On a GPU its memory stays taken as long; and where a process is
    forked meanwhile, as a DataLoader's workers are, the search may run in that one, which cannot free memory of a GPU
    and is killed. Here both are wrapped when they are called.
    """

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        for name in ("update", "compute"):
            if name in vars(cls):
                setattr(cls, name, _wrapped_when_called(name, vars(cls)[name]))

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._let_go_of_itself()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._let_go_of_itself()

    def _let_go_of_itself(self) -> None:
        del self.__dict__["update"], self.__dict__["compute"]

    def _make_states_mutable(self) -> None:
        """Replace inference tensors; call it outside inference mode."""
        for name in self._defaults:
            state = getattr(self, name)
            if state.is_inference():
                setattr(self, name, state.clone())


_WRAPPED: weakref.WeakSet[Callable] = weakref.WeakSet()


def _wrapped_when_called(name: str, method: Callable) -> Callable:
    """The method of a class as torchmetrics wraps that of an instance; once, where one calls that of its parent."""

    @functools.wraps(method)
    def wrapped(self: Any, *args: Any, **settings: Any) -> Any:
        called = types.MethodType(method, self)
        outermost = getattr(type(self), name)
        if outermost is not wrapped and outermost in _WRAPPED:
            return called(*args, **settings)
        return getattr(self, f"_wrap_{name}")(called)(*args, **settings)

    _WRAPPED.add(wrapped)
    return wrapped


def sum_over_ranks(tensors: Iterable[Tensor], group: Any = None) -> list[Tensor]:
    """The sums over all ranks of tensors of one type and device, in one exchange."""
    tensors = list(tensors)
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat, group=group)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


class RecordMetric(StreamingMetric):
    """A streaming metric whose `compute` returns a record of tensors as it is."""

    def _wrap_compute(self, compute: Callable) -> Callable:
        wrapped = super()._wrap_compute(lambda: _Sealed(compute()))

        @functools.wraps(compute)
        def unsealed() -> Any:
            return wrapped().result

        return unsealed

    def _apply(self, fn: Callable, exclude_state: Any = "") -> Any:
        # A sealed result would stay on its device, and torchmetrics cannot go through a frozen one.
        self._computed = self._forward_cache = None
        return super()._apply(fn, exclude_state)
