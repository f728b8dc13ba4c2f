"""Running a model without leaving a trace of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from nc_callbacks.probe.randomness import seeded
from nc_callbacks.state.settings import global_settings, put_back_settings
from nc_callbacks.state.snapshot import Snapshot


@contextmanager
def undisturbed(model: nn.Module, seed: int = 0) -> Iterator[None]:
    """Run the model in eval mode, without gradients, eagerly, and leave no trace of it.

    Afterwards everything that can be reached from the model is what it was before, also after an exception: parameters,
    buffers, the train/eval flags and all other attributes of every submodule, with the generators, tensors, collections
    and objects in them (see `nc_callbacks.state.snapshot.Snapshot`); what the model made or registered when it ran is
    gone again. So are the random states (Python, NumPy, torch, each CUDA device) and torch's global settings. Inside,
    random numbers start from `seed`, so that random augmentation draws the same each time.

    Args:
        model: The model to run.
        seed: Seed of the random numbers drawn inside.
    """
    flags = [(module, module.training) for module in model.modules()]
    settings = global_settings()
    with ExitStack() as stack:
        stack.enter_context(seeded(seed))
        stack.enter_context(torch.no_grad())
        if "torch._dynamo" in sys.modules:
            # Hooks never fire inside compiled code.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        snapshot = Snapshot(model)
        try:
            model.eval()
            yield
        finally:
            snapshot.put_back()
            for module, training in flags:
                module.training = training
            put_back_settings(settings)
