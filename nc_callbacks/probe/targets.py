"""Class indices of targets."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

_WAY_OUT = "Pass batch_fn=..., a function from a batch to (inputs, targets)."


def class_indices(targets: Any, num_classes: int, sequence: bool = False) -> Int[Tensor, " *n"]:
    """Targets as class indices, of whatever integer type or whole floating-point numbers they are.

    One-hot and soft labels (last dimension k) become their argmax, which has to be unique: of a mixture of two labels
    the heavier one counts. Floating-point rows are soft labels where they add up to 1, and one-hot, scaled or smoothed,
    where all entries but the largest are the same. Booleans are classes 0 and 1 where there are two.

    Args:
        targets: Class indices or labels.
        num_classes: k.
        sequence: Targets (n, T) are class indices also where T = k.

    Raises:
        ValueError: The targets are no tensor or no class indices, or have several labels a sample, or rows of numbers
            that are no labels, as regression has them.
    """
    if not isinstance(targets, Tensor):
        raise ValueError(f"Expected targets as a tensor of class indices, got {type(targets).__name__}. {_WAY_OUT}")
    if targets.is_complex() or targets.is_quantized:
        raise ValueError(f"Expected targets that are class indices, got {targets.dtype}. {_WAY_OUT}")
    k = num_classes
    # Of three dimensions and more, integers are indices of positions also where the last of them are k.
    labels = targets.ndim == 2 or targets.is_floating_point() or targets.dtype == torch.bool
    if targets.ndim >= 2 and targets.shape[-1] == k > 1 and not sequence and labels:
        return _labelled(targets)
    if targets.ndim == 2 and targets.shape[1] == 1 and not sequence:
        targets = targets[:, 0]
    return _indices(targets, k, sequence)


def _labelled(labels: Tensor) -> Int[Tensor, " *n"]:
    """The one label of each row."""
    integral = not labels.is_floating_point()
    rows = labels.to(torch.uint8) if labels.dtype == torch.bool else labels
    largest, indices = rows.max(-1)
    described = f"{labels.dtype} targets of shape {tuple(labels.shape)}"
    if bool(((rows == largest.unsqueeze(-1)).sum(-1) != 1).any()):
        soft = not integral and bool(_adds_up(rows).all())
        which = "labels mixed in equal parts" if soft else "multi-label targets"
        raise ValueError(
            f"Expected one label a sample, got {described} with rows in which several entries are largest, as {which} "
            f"have: neural collapse is defined for one class a sample. {_WAY_OUT[:-1]} with one class index a sample."
        )
    if not integral and not _are_labels(rows, largest):
        raise ValueError(
            f"Expected class indices, one-hot rows or soft labels that add up to 1, got {described} whose rows are "
            f"neither, as in regression. {_WAY_OUT[:-1]} with one class index a sample, such as targets.argmax(-1)."
        )
    if integral and bool(((rows != 0) & (rows != 1)).any()):
        raise ValueError(
            f"Expected class indices or one-hot rows, got {described} with other numbers than 0 and 1. {_WAY_OUT}"
        )
    return indices


def _are_labels(rows: Tensor, largest: Tensor) -> bool:
    """Whether rows are soft labels, or one-hot ones of a few values: at most two a class."""
    others = ~_adds_up(rows)
    if not bool(others.any()):
        return True
    least, k = rows.amin(-1), rows.shape[-1]
    # Of two classes any row has one entry apart from the other; regression has other values in each.
    values = torch.cat([largest[others], least[others]]).unique()
    return len(values) <= 2 * k and bool((others.logical_not() | _has_one_entry(rows, least)).all())


def _adds_up(rows: Tensor) -> Tensor:
    """Whether each row is a distribution, up to rounding of its type."""
    tolerance = max(1e-3, rows.shape[-1] * torch.finfo(rows.dtype).eps)
    return (rows.amin(-1) >= -tolerance) & ((rows.sum(-1, dtype=torch.float32) - 1).abs() <= tolerance)


def _has_one_entry(rows: Tensor, least: Tensor) -> Tensor:
    """Whether all entries of each row but the largest are the same."""
    second = rows.topk(2, -1).values[..., 1]
    return second - least <= 1e-3 * rows.abs().amax(-1)


def _indices(targets: Tensor, k: int, sequence: bool) -> Int[Tensor, " *n"]:
    described = f"{targets.dtype} targets of shape {tuple(targets.shape)}"
    if targets.dtype == torch.bool and k != 2:
        raise ValueError(f"Expected class indices of {k} classes, got {described}. {_WAY_OUT}")
    if targets.is_floating_point():
        matrix = targets.ndim > 1 and not sequence
        if matrix or not bool((targets == targets.round()).all()):
            raise ValueError(
                f"Expected class indices, or labels with one entry for each of the {k} classes; got {described}"
                f"{'' if matrix else ' that are no whole numbers'}. {_WAY_OUT}"
            )
    return targets.long()
