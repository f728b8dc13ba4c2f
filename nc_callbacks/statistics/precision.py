"""Which precision the sums are kept in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch


def wide_dtype(device: torch.device) -> torch.dtype:
    """float64 where the device has it: the small sums and the final algebra are done in it."""
    return torch.float32 if device.type == "mps" else torch.float64


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """Plain arithmetic for the sums: no inference tensors, no autocast, no TF32.

    TF32 has a 10-bit mantissa, and states made in inference mode could not be updated outside it.
    """
    # On small batches entering all contexts would take as long as the sums.
    plain = device.type in ("cpu", "cuda") and not torch.is_inference_mode_enabled()
    if plain and not torch.is_autocast_enabled(device.type):
        return nullcontext() if device.type == "cpu" else _no_tf32()
    return _full_precision(device)


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        if device.type == "cuda":
            stack.enter_context(_no_tf32())
        yield


@contextmanager
def _no_tf32() -> Iterator[None]:
    # torch 2.9 replaced the boolean by a name, and reading one after setting the other is an error there.
    settings = torch.backends.cuda.matmul
    name, exact = ("fp32_precision", "ieee") if hasattr(settings, "fp32_precision") else ("allow_tf32", False)
    before = getattr(settings, name)
    setattr(settings, name, exact)
    try:
        yield
    finally:
        setattr(settings, name, before)
