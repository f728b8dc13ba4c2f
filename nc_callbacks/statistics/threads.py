"""Few threads for small operations: each parallel one ends when its last thread has run.

Where another process uses a core, that thread waits for the system to give it one, for milliseconds, and the others
spin. A product is worth it; a score of operations that read a batch once are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

_FEW = 4
"""Threads up to which such operations are no slower on one, beside the product."""


def one_thread(device: torch.device) -> AbstractContextManager[None]:
    """One thread inside, where there are few; elsewhere, and on other devices than a CPU, as many as there are."""
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    return _one_of(threads) if 1 < threads <= _FEW else nullcontext()


@contextmanager
def _one_of(threads: int) -> Iterator[None]:
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
