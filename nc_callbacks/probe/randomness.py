"""Random numbers that begin anew, and go on afterwards as if none had been drawn."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, the global generators (Python, NumPy, torch, CUDA devices) start from a seed; then go on as before."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global state is meant
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            # torch.manual_seed would also seed devices that are not in use yet.
            torch.default_generator.manual_seed(seed)
            if devices:
                torch.cuda.manual_seed_all(seed)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
