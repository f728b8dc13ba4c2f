"""Loggers that need a decision at run time."""

from __future__ import annotations

import os
from typing import Any

from lightning.pytorch.loggers import WandbLogger


def wandb_logger(**kwargs: Any) -> WandbLogger:
    """A WandbLogger that is offline unless this machine is logged in to W&B, and never prompts.

    ``WANDB_MODE`` is respected where it is set.

    Args:
        kwargs: Passed to `lightning.pytorch.loggers.WandbLogger`.
    """
    import wandb

    if "WANDB_MODE" not in os.environ and not wandb.api.api_key:
        kwargs["offline"] = True
    return WandbLogger(**kwargs)
