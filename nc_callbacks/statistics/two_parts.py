"""Sums in two parts of one precision: the sum of a block of rows, and that of the blocks before.

A sum of n numbers in float32 loses what each addition rounds off, and from some 2²⁴ additions on it no longer grows.
Here a block takes a bounded number of rows. Then it is added to the earlier blocks, and what that rounds off stays in
the block (Knuth's TwoSum), so that nothing is lost between blocks: the two parts hold 48 bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_STRIP = 2**16
"""Numbers worked on at once, which stay in a CPU's cache."""

_DEVICE_STRIP = 2**24
"""The same on other devices, where each strip costs launches; a bound on the memory that is taken beside the sums."""


def total(block: Tensor, earlier: Tensor, place: Any, wide: torch.dtype) -> Tensor:
    """The sum of both parts at a place, in a tensor of its own; `earlier` is empty where no block has ended."""
    value = block[place].to(wide, copy=True)
    return value.add_(earlier[place]) if earlier.numel() else value


def store(block: Tensor, earlier: Tensor, place: Any, value: Tensor) -> None:
    """Set the sum at a place; without an earlier part the block has to be as precise as the value."""
    if not earlier.numel():
        block[place] = value.to(block.dtype)
        return
    rounded = value.to(block.dtype)
    earlier[place] = rounded
    block[place] = value.sub(rounded).to(block.dtype)


def end_block(block: Tensor, earlier: Tensor) -> None:
    """Move the block into the earlier sum but for what that rounds off."""
    strip = _STRIP if block.device.type == "cpu" else _DEVICE_STRIP
    for a, b in zip(earlier.view(-1).split(strip), block.view(-1).split(strip), strict=True):
        both = a + b
        added = both - a
        kept = both - added
        b.sub_(added).add_(torch.sub(a, kept, out=kept))
        a.copy_(both)
