"""A look that checks itself: what it leaves changed is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from nc_callbacks.state.fingerprint import Fingerprint

_SHOWN = 20
"""Changes that are named; the others are counted."""


@contextmanager
def verified(
    trainer: Trainer, model: LightningModule, loaders: Mapping[str, Any], warn: Callable[[str], None]
) -> Iterator[None]:
    """Compare the state of model, data and random numbers before and after.

    Args:
        trainer: The trainer, whose data module is looked into too.
        model: Its LightningModule.
        loaders: Loaders by split.
        warn: Called with what has changed.
    """
    roots = {"model": model, **{f"{split} loader": loader for split, loader in loaders.items()}}
    roots["datamodule"] = getattr(trainer, "datamodule", None)
    before = Fingerprint.of(**roots)
    yield
    changed = before.differences(Fingerprint.of(**roots))
    if not changed:
        rank_zero_info(f"verify=True: the look left {len(before.digests)} pieces of state as they were.")
        return
    more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
    warn(
        f"verify=True: the look changed {', '.join(changed[:_SHOWN])}{more}. Training goes on from there, and its "
        "weights may differ from those without the look. docs/invisible.md says what cannot be put back."
    )
