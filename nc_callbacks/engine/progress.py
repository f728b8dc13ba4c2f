"""A progress bar for the callbacks' own passes, in the style of the trainer's."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Trainer

from nc_callbacks.engine.trainer import is_a, rich_bar, tqdm_bar


@contextmanager
def progress(trainer: Trainer, description: str, total: float) -> Iterator[Callable[[], Any]]:
    """A bar for a pass; none where the trainer shows none.

    Args:
        trainer: Its bar sets the style.
        description: What stands before the bar.
        total: Number of batches; may be infinite.

    Returns:
        A function to call after each batch.
    """
    bar: Any = trainer.progress_bar_callback
    if is_a(bar, "RichProgressBar") and bar.is_enabled and bar.progress is not None:
        with rich_bar(bar, description, total) as advance:
            yield advance
    elif is_a(bar, "TQDMProgressBar") and bar.is_enabled and trainer.is_global_zero:
        steps = int(total) if total != math.inf else None
        place = 2 * bar.process_position + 1
        with tqdm_bar(
            desc=description, total=steps, leave=False, position=place, dynamic_ncols=True, file=sys.stdout
        ) as ticks:
            yield ticks.update
    else:
        yield lambda: None
