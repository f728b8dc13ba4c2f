"""Running a model without leaving a trace of it."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def undisturbed(model: nn.Module, seed: int = 0) -> Iterator[None]:
    """Run the model in eval mode, without gradients, eagerly, and leave no trace of it.

    Afterwards the train/eval flag of every submodule, every buffer and the random states (Python, NumPy, torch, each
    CUDA device) are what they were before, also after an exception. Inside, random numbers start from `seed`, so that
    random augmentation draws the same each time.

    Args:
        model: The model to run.
        seed: Seed of the random numbers drawn inside.
    """
    modules = list(model.modules())
    flags = [(module, module.training) for module in modules]
    buffers = [(module, dict(module._buffers.items())) for module in modules]
    values = [(buffer, buffer.clone()) for _, held in buffers for buffer in held.values() if buffer is not None]
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global state is meant
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=list(devices)))
        stack.enter_context(torch.no_grad())
        if "torch._dynamo" in sys.modules:
            # Hooks never fire inside compiled code.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            # torch.manual_seed would also seed devices that are not in use yet.
            torch.default_generator.manual_seed(seed)
            if devices:
                torch.cuda.manual_seed_all(seed)
            model.eval()
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002
            for module, training in flags:
                module.training = training
            for buffer, value in values:
                buffer.copy_(value)
            for module, held in buffers:
                if isinstance(module, torch.jit.ScriptModule):
                    # It neither gains nor loses buffers.
                    continue
                module._buffers.clear()
                module._buffers.update(held)
