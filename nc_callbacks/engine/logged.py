"""Many numbers logged at once: by Lightning's `log` each takes a millisecond, most of it copies of nothing."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from nc_callbacks.engine.trainer import overrides, results_of


class Logged:
    """A number in the trainer's results, which treat it as one that `log` has put there."""

    is_tensor = True
    _forward_cache = None

    def __init__(self, meta: Any) -> None:
        self.meta = meta
        self._computed: Tensor | None = None
        self.reset()

    def set(self, value: Tensor) -> None:
        """Take the number as the only one of its epoch."""
        self._total, self._weight = value, 1
        self._computed = value
        self.has_reset = False

    def forward(self, value: Tensor, batch_size: int) -> None:
        """Take another one under the same key into the mean."""
        self._total = self._total.to(value) + value * batch_size
        self._weight += batch_size
        self._computed = self._total / self._weight

    def compute(self) -> Tensor | None:
        """The mean; None where nothing was logged since the last reset."""
        return self._computed

    def to(self, *_: Any, **__: Any) -> Logged:
        """Itself: the next number brings its device along."""
        return self

    def reset(self) -> None:
        """Forget the epoch's number."""
        self._total, self._weight = torch.zeros(()), 0
        self._computed = None
        self.has_reset = True


def log_numbers(
    trainer: Trainer, model: LightningModule, numbers: Mapping[str, float], on_bar: Collection[str] = ()
) -> None:
    """`model.log` of each number at the end of an epoch: the same values for loggers, monitors and bars.

    The first and those for the bar are logged by it, which refuses and warns as ever; the others are put beside them.
    On several ranks, and where the module has a `log` of its own, all go that way.
    """
    settings: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": 1, "add_dataloader_idx": False}
    settings["sync_dist"] = trainer.world_size > 1
    own = overrides(model, "log") or "log" in vars(model)
    at_once = not own and trainer.world_size == 1 and not trainer.barebones
    plainly = [name for place, name in enumerate(numbers) if not at_once or place == 0 or name in on_bar]
    for name in plainly:
        model.log(name, numbers[name], prog_bar=name in on_bar, **settings)
    others = [name for name in numbers if name not in plainly]
    kept = results_of(trainer, model) if others else None
    like: Any = kept[0].get(f"{kept[1]}.{plainly[0]}") if kept else None
    if kept is None or not hasattr(like, "meta"):
        for name in others:
            model.log(name, numbers[name], **settings)
        return
    results, hook = kept
    wide = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
    values = torch.tensor([numbers[name] for name in others], dtype=wide).to(model.device)
    for name, value in zip(others, values, strict=True):
        key = f"{hook}.{name}"
        if key not in results:
            meta = copy.copy(like.meta)
            meta.name, meta.prog_bar = name, False
            results[key] = Logged(meta)
        held = results[key]
        if isinstance(held, Logged) and held.has_reset:
            # A tensor of its own: what keeps one shall not keep all.
            held.set(value.clone())
        else:
            model.log(name, numbers[name], **settings)
