"""What TensorBoard gets when training has ended: histograms by class, and hparams with the final metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from nc_callbacks.callbacks.base import CollapseCallback
from nc_callbacks.callbacks.history import log_spaced
from nc_callbacks.metrics import METRICS, LogKey


def is_by_class(name: str) -> bool:
    """Whether a vector has one entry per class, as one without a row in the registry is taken to have."""
    return name not in METRICS or METRICS[name].axis == "class"


def log_histograms(logger: Any, callbacks: list[CollapseCallback]) -> None:
    """The per-class vectors of the callbacks' histories, a histogram a look, of at most 40 looks each.

    Args:
        logger: A TensorBoardLogger.
        callbacks: Callbacks that have looked.
    """
    for history in (callback.history for callback in callbacks):
        kept = set(log_spaced([record["epoch"] + 1 for record in history]))
        for record in history:
            if record["epoch"] + 1 not in kept:
                continue
            for text, vector in record.items():
                if not isinstance(vector, Tensor) or not is_by_class(LogKey.parse(text).name):
                    continue
                # A class without samples has no value.
                if len(known := vector[vector.isfinite()]):
                    logger.experiment.add_histogram(text, known.float(), record["step"])


def log_hparams(logger: Any, config: Mapping[str, Any], metrics: Mapping[str, float | None]) -> None:
    """The configuration in the table of hparams, beside the final values of metrics that have curves already.

    Lightning's own way writes each final value as a curve of one point.

    Args:
        logger: A TensorBoardLogger.
        config: Nested settings.
        metrics: Final values by log key.
    """
    from torch.utils.tensorboard.summary import hparams

    given = dict(_flattened(config))
    known = {key: value for key, value in metrics.items() if value is not None}
    writer = logger.experiment._get_file_writer()
    for part in hparams(given, known):
        writer.add_summary(part)


def _flattened(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by their path.

    Example:
        >>> dict(_flattened({"model": {"width": 8, "init": None}, "seed": 0}))
        {'model/width': 8, 'model/init': 'None', 'seed': 0}
    """
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{above}{name}/")
        else:
            yield f"{above}{name}", value if isinstance(value, (bool, int, float, str)) else str(value)
