"""What a validation step gives the model, beside what a look gives it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor

from nc_callbacks.engine.request import Source
from nc_callbacks.probe import default_batch_fn
from nc_callbacks.probe.trial import hook_before

_TOLERANCE = 1e-2
"""Relative difference that a narrower type may make."""


class GivenInputs:
    """One comparison of inputs, at the first validation batch: training augments them, validation does not.

    Args:
        warn: Called with what a warning is about, and its text.
    """

    def __init__(self, warn: Callable[[str, str], None]) -> None:
        self.warn = warn
        self.remove: Callable[[], None] | None = None
        self.done = False
        self.taken: Tensor | None = None

    def begin(self, model: LightningModule, source: Source) -> None:
        """Watch what the step gives the model, where a look gives it the batch's own inputs."""
        if self.done:
            return
        self.done = True
        # A hook would have compiled code compiled again.
        if source.batch_fn or source.forward_fn or model._compiled_call_impl is not None:
            return

        def take(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.taken is None:
                self.taken = next((part for part in (*args, *kwargs.values()) if isinstance(part, Tensor)), None)

        self.remove = hook_before(model, take)

    def end(self, model: LightningModule, batch: Any) -> None:
        """Compare, and warn where they differ."""
        taken = self.taken
        if self.remove is None:
            return
        self.stop()
        told = ""
        with suppress(Exception):
            inputs = default_batch_fn(batch)[0]
            if isinstance(taken, Tensor) and isinstance(inputs, Tensor) and _differ(taken, inputs):
                told = f"{_told(taken)}; {_told(inputs)}"
        if told:
            self.warn(
                "other inputs",
                f"The validation_step of {type(model).__name__} gives the model other inputs than the batch holds "
                f"({told}), and a look gives it those of the batch: its features are others. Do what is done there in "
                "forward or on_after_batch_transfer, or pass batch_fn=..., a function from a batch to (inputs, "
                "targets).",
            )

    def stop(self) -> None:
        """Take the hook off the model."""
        if self.remove is not None:
            self.remove()
        self.remove = self.taken = None


def _differ(one: Tensor, other: Tensor) -> bool:
    if one.numel() != other.numel():
        return True
    one, other = (tensor.detach().flatten().float() for tensor in (one, other))
    return bool((one - other.to(one.device)).norm() > _TOLERANCE * other.norm())


def _told(tensor: Tensor) -> str:
    mean, deviation = float(tensor.float().mean()), float(tensor.float().std(correction=0))
    return f"{tuple(tensor.shape)}, mean {mean:.3g}, standard deviation {deviation:.3g}"
