"""Metrics over the depth of a network, and where its tunnel begins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from nc_callbacks.metrics.keys import LogKey

OF_DEPTH = (
    "nc1", "nc1_quotient", "class_separation", "ncc_accuracy", "lda_accuracy", "spectrum_effective_rank",
)  # fmt: skip
"""Shown over depth, in this order, where they are there at two layers besides the classifier's input."""

TOLERANCE = 0.01
"""An accuracy that is higher by no more than this is no improvement: a percentage point."""


def tunnel_start(accuracies: Sequence[float], tolerance: float = TOLERANCE) -> int | None:
    """The first layer from which on nothing improves: no later one is more accurate than it by over `tolerance`.

    After Masarczyk et al. (2023), who take linear probes and the share of the final accuracy; here the accuracies are
    those of class means, of one split, in the order of the layers. What is not finite improves nothing and starts none.

    Args:
        accuracies: Of each layer, the classifier's input last.
        tolerance: What does not count as better.

    Returns:
        Its place; None where that is the last layer, behind which there is no tunnel, or nothing is known.

    Example:
        >>> tunnel_start([0.4, 0.7, 0.9, 0.905, 0.89]), tunnel_start([0.4, 0.6, 0.8])
        (2, None)
    """
    for place, accuracy in enumerate(accuracies[:-1]):
        later = [value for value in accuracies[place + 1 :] if math.isfinite(value)]
        if math.isfinite(accuracy) and later and max(later) <= accuracy + tolerance:
            return place
    return None


def over_depth(layers: Sequence[str], name: str, place: LogKey) -> list[LogKey]:
    """Log keys of a metric at each layer in order, the classifier's input last.

    Args:
        layers: Further layers.
        name: The metric's.
        place: Prefix, split and loader.
    """
    return [replace(place, name=name, layer=layer) for layer in (*(layer for layer in layers if layer), "")]


def tunnel_of(values: Mapping[str, float], layers: Sequence[str], place: LogKey) -> tuple[str, int] | None:
    """By which accuracy the tunnel is told, the whitened class means' or the nearest class mean's, and where it begins.

    Args:
        values: By log key.
        layers: As in `over_depth`.
        place: As in `over_depth`.
    """
    for name in ("lda_accuracy", "ncc_accuracy"):
        keys = [str(key) for key in over_depth(layers, name, place)]
        if all(key in values for key in keys):
            start = tunnel_start([values[key] for key in keys])
            return None if start is None else (name, start)
    return None
