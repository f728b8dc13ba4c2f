"""Which precision the sums are kept in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def wide_dtype(device: torch.device) -> torch.dtype:
    """float64 where the device has it: the small sums and the final algebra are done in it."""
    return torch.float32 if device.type == "mps" else torch.float64


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Keep TF32 out of float32 products on a GPU: its 10-bit mantissa would undo the shifted sums."""
    if device.type != "cuda":
        yield
        return
    # torch 2.9 replaced the boolean by a name, and reading one after setting the other is an error there.
    settings = torch.backends.cuda.matmul
    name, exact = ("fp32_precision", "ieee") if hasattr(settings, "fp32_precision") else ("allow_tf32", False)
    before = getattr(settings, name)
    setattr(settings, name, exact)
    try:
        yield
    finally:
        setattr(settings, name, before)
