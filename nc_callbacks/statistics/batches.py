"""A batch of features and targets as rows, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

_SLICE_BYTES = 16 * 2**20
"""Bound on the features that are worked on at once on a CPU, where room for them is kept."""

_LEAST_SLICE = 256
"""Rows below which a product of the rows with themselves would be bound by memory."""

_LARGEST_SLICE = 2**16
"""Rows that are added up in one block of the sums."""


def samples(features: Tensor, targets: Tensor, num_features: int | None) -> tuple[Tensor, Tensor]:
    """Features (n, p) and targets (n,), whatever their shapes were."""
    if not features.is_floating_point():
        raise ValueError(f"features must be floating point, got {features.dtype}.")
    check_integer(targets)
    if targets.ndim <= 1:
        x, y = features.flatten(1) if features.ndim > 2 else features, targets.reshape(-1)
    else:
        x, y = features.reshape(-1, features.shape[-1]), targets.reshape(-1)
    if x.ndim != 2 or x.shape[0] != y.shape[0] or (targets.ndim > 1 and features.shape[:-1] != targets.shape):
        raise ValueError(
            f"features and targets must have the same length: expected features (n, p) with targets (n,), or "
            f"features (n, …, p) with targets (n, …); got {tuple(features.shape)} and {tuple(targets.shape)}."
        )
    if num_features and x.shape[1] != num_features:
        raise ValueError(
            f"features must have {num_features} entries per sample, as set or as in the first batch, got {x.shape[1]} "
            f"(features of shape {tuple(features.shape)})."
        )
    return x.detach(), y.long()


def check_integer(targets: Tensor) -> None:
    """Refuse targets that are no class indices: whole numbers of any type, booleans (0 and 1) included.

    Floating-point targets are looked at, which waits for a device.
    """
    if targets.is_complex():
        raise ValueError(f"targets must be integer class indices, got {targets.dtype}.")
    if targets.is_floating_point() and not bool((targets.isfinite() & (targets == targets.trunc())).all()):
        wrong = targets[~targets.isfinite() | (targets != targets.trunc())]
        raise ValueError(
            f"targets must be integer class indices, got {targets.dtype} with {wrong.flatten()[:5].tolist()}. "
            "Pass class indices; soft labels have none."
        )


def check_range(y: Tensor, num_classes: int) -> None:
    """Refuse targets on the CPU that lie outside 0…k−1."""
    if not y.shape[0]:
        return
    least, largest = (extreme.item() for extreme in y.aminmax())
    if least < 0 or largest >= num_classes:
        wrong = y[(y < 0) | (y >= num_classes)]
        raise ValueError(
            f"targets must lie in 0…{num_classes - 1} (num_classes={num_classes}), got "
            f"{sorted(set(wrong.tolist()))[:5]}. Pass class indices, or set ignore_index for a padding label."
        )


def in_slices(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The batch in slices of bounded size; whole on other devices than the CPU, where each slice costs launches."""
    rows = min(_LARGEST_SLICE, max(_LEAST_SLICE, _SLICE_BYTES // max(1, x.shape[1] * 4)))
    if x.device.type != "cpu" or len(x) <= rows:
        return iter([(x, y)])
    return zip(x.split(rows), y.split(rows), strict=True)
