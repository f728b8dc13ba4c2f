"""Rows of small batches, which wait until there are enough of them to be worth the work."""

from __future__ import annotations

import torch
from torch import Tensor

_BYTES = 2**20
_ROWS = 4096
"""Rows wait up to this size, which stays in a CPU's cache, or this number."""

_DEVICE_BYTES = 32 * 2**20
_DEVICE_ROWS = 2**15
"""The same on other devices, where an operation on few rows costs its launch."""


def most_bytes(device: torch.device) -> int:
    """Bytes of rows that may wait on a device."""
    return _BYTES if device.type == "cpu" else _DEVICE_BYTES


class PendingRows:
    """Rows and their classes in memory that is kept."""

    def __init__(self) -> None:
        self.count = 0
        self._rows = torch.empty(0)
        self._classes = torch.empty(0, dtype=torch.long)

    def room(self, like: Tensor, at_least: int) -> int:
        """The number of rows as wide as those of a tensor that may wait."""
        most = _ROWS if like.device.type == "cpu" else _DEVICE_ROWS
        size = most_bytes(like.device)
        return max(at_least, min(most, size // max(1, like.shape[1] * like.element_size())))

    def add(self, x: Tensor, y: Tensor, room: int, dtype: torch.dtype) -> None:
        """Keep copies of rows in `dtype`; `count` is 0 where the room or the dtype is another one than before."""
        if self._rows.shape != (room, x.shape[1]) or self._rows.dtype != dtype or self._rows.device != x.device:
            self._rows = x.new_empty(room, x.shape[1], dtype=dtype)
            self._classes = y.new_empty(room)
        rows = x.shape[0]
        self._rows.narrow(0, self.count, rows).copy_(x)
        self._classes.narrow(0, self.count, rows).copy_(y)
        self.count += rows

    def take(self) -> tuple[Tensor, Tensor]:
        """The rows and classes that wait, valid until `add`; none wait afterwards."""
        count, self.count = self.count, 0
        return self._rows[:count], self._classes[:count]
