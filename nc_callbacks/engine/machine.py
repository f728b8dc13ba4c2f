"""The memory of the machine, and what statistics will need of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch

from nc_callbacks.statistics import Covariance, state_bytes

_SHARE = 0.25
"""Of the machine's memory: what needs more is said before training."""


def memory_of(device: torch.device) -> int | None:
    """Bytes of the memory where tensors of this device lie; None where that is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    if device.type != "cpu" or not hasattr(os, "sysconf"):
        return None
    bytes_there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):
        # A container's limit; "max" where it has none.
        bytes_there = min(bytes_there, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return bytes_there


def said_of_memory(
    layers: Mapping[str, tuple[int, Covariance]], num_classes: int, splits: int, ranks: int, device: torch.device
) -> str | None:
    """A sentence where class statistics will take a large share of the machine's memory, else None.

    Args:
        layers: Features and covariance of each layer.
        num_classes: Number of classes k.
        splits: Splits of which a look keeps the moments until it ends.
        ranks: Processes that share the data.
        device: Where the statistics lie.
    """
    there = memory_of(device)
    needed = {
        layer: state_bytes(num_classes, p, covariance, ranks, splits - 1, device)
        for layer, (p, covariance) in layers.items()
    }
    if there is None or sum(needed.values()) <= _SHARE * there:
        return None
    largest = max(needed, key=needed.__getitem__)
    p, covariance = layers[largest]
    return (
        f"Class statistics will take up to {sum(needed.values()) / 2**30:.1f} GiB, and {device} has "
        f"{there / 2**30:.1f} GiB. Most is for {largest!r} ({num_classes} classes, {p} features, covariance "
        f'{covariance!r}): pool="mean", fewer layers or splits, or no option that needs a covariance of each class '
        "takes less."
    )
