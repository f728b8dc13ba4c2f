"""Measurements of an observation, and observations that cannot be measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from nc_callbacks.engine.notices import Notices
from nc_callbacks.engine.observation import Observation
from nc_callbacks.engine.trainer import ranks_of
from nc_callbacks.metrics import LogKey, metric_of


@dataclass(frozen=True)
class Measurement:
    """Numbers, vectors and matrices of one layer on one split, by the metrics' names."""

    numbers: dict[str, float] = field(default_factory=dict)
    """Logged, and kept in `history`."""
    vectors: dict[str, Tensor] = field(default_factory=dict)
    """Kept in `history`."""
    matrices: dict[str, Tensor] = field(default_factory=dict)
    """Kept in `latest`."""


def measured(
    measure: Callable[[Observation], Measurement],
    observation: Observation,
    head: str,
    trainer: Trainer,
    notices: Notices,
) -> Measurement:
    """The measurement; empty where there is nothing to measure or it fails, NaN where features are not finite."""
    if not _is_measurable(observation, head, trainer.current_epoch, notices):
        return Measurement()
    try:
        # What one rank cannot measure is logged by none, since logging waits for all.
        found = ranks_of(trainer).all_or_none(lambda: measure(observation.of_present_classes()))
    except Exception as error:
        what = f"Measuring the {observation.split} split at {observation.layer!r} in epoch {trainer.current_epoch + 1}"
        notices.of_failure(error, what, trainer.global_rank)
        return Measurement()
    if observation.projected:
        found = _kept_by_projection(found, observation.layer, notices)
    if observation.moments.nonfinite:
        return replace(found, numbers=dict.fromkeys(found.numbers, math.nan))
    return found


def _is_measurable(observation: Observation, head: str, epoch: int, notices: Notices) -> bool:
    """Whether two classes have samples; warns once of classes without, and of features that are not finite."""
    moments, split = observation.moments, observation.split
    if moments.nonfinite:
        notices.once(
            "nonfinite",
            f"{moments.nonfinite} of {int(moments.counts.sum())} {split} samples have NaN or infinite features at "
            f"{observation.layer!r} in epoch {epoch + 1}. The metrics of such an epoch are NaN; training goes on.",
        )
    k, absent = len(moments.counts), (~moments.present).nonzero().squeeze(1).tolist()
    if absent:
        notices.once(
            f"absent {split}",
            f"No {split} sample has class {', '.join(map(str, absent[:10]))}{', …' if len(absent) > 10 else ''}: "
            f"{len(absent)} of the {k} rows of the classifier {head!r} are left out. If that is not the "
            "classifier, pass head=....",
        )
    if measurable := k - len(absent) >= 2:
        return measurable
    notices.once(f"one {split}", f"The {split} split has samples of one class only: nothing is measured on it.")
    return False


def _kept_by_projection(found: Measurement, layer: str, notices: Notices) -> Measurement:
    """What is right of features that are projected; warns once of what is left out.

    Args:
        found: All that was measured on them.
        layer: Where.
        notices: Give the warning.
    """
    lost = [name for part in (found.numbers, found.vectors, found.matrices) for name in part if not _is_kept(name)]
    if lost:
        notices.once(
            f"projected {sorted(lost)}",
            f"Left out at layers that max_features projects, such as {layer!r}, for a projection does not keep them: "
            f"{', '.join(lost)}.",
        )
    return Measurement(
        {name: value for name, value in found.numbers.items() if _is_kept(name)},
        {name: value for name, value in found.vectors.items() if _is_kept(name)},
        {name: value for name, value in found.matrices.items() if _is_kept(name)},
    )


def _is_kept(name: str) -> bool:
    # A loader's name may stand before the metric's.
    return metric_of(name.rsplit("/", 1)[-1]).projected


def keyed(place: LogKey, values: dict[str, Any]) -> dict[str, Any]:
    """Values by the metrics' names, by their log keys."""
    return {str(replace(place, name=name)): value for name, value in values.items()}


def to_keep(tensor: Tensor) -> Tensor:
    """A tensor for the history: on the CPU, in float32."""
    return (tensor.float() if tensor.is_floating_point() else tensor).cpu()
