"""Common base of the statistics as torchmetrics Metrics."""

from __future__ import annotations

import functools
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
    """A metric whose states are updated in place, also those that were made in inference mode."""

    def _make_states_mutable(self) -> None:
        """Replace inference tensors; call it outside inference mode."""
        for name in self._defaults:
            state = getattr(self, name)
            if state.is_inference():
                setattr(self, name, state.clone())


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
