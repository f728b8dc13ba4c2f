"""A torchmetrics Metric whose result is a frozen dataclass."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torchmetrics import Metric


class _Sealed:
    """Carries a result past torchmetrics, which squeezes one-element tensors and refuses frozen dataclasses."""

    def __init__(self, result: Any) -> None:
        self.result = result


class RecordMetric(Metric):
    """A metric whose `compute` returns a record of tensors as it is."""

    def _wrap_compute(self, compute: Callable) -> Callable:
        wrapped = super()._wrap_compute(lambda: _Sealed(compute()))

        @functools.wraps(compute)
        def unsealed() -> Any:
            return wrapped().result

        return unsealed

    def _apply(self, fn: Callable, exclude_state: Any = "") -> Any:
        # A sealed result would stay on its device.
        self._computed = None
        return super()._apply(fn, exclude_state)
