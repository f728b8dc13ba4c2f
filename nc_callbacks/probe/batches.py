"""Inputs and targets of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from jaxtyping import Int
from torch import Tensor

INPUT_KEYS = ("image", "x", "input")
TARGET_KEYS = ("label", "y", "target")


def default_batch_fn(batch: Any) -> tuple[Any, Any]:
    """Inputs and targets of a batch: its first two items, or of a dict or dataclass those under the usual names.

    These are ``image``, ``x`` or ``input``, and ``label``, ``y`` or ``target``.

    Raises:
        ValueError: The batch is neither.
    """
    if is_dataclass(batch) and not isinstance(batch, type):
        values: Any = {field.name: getattr(batch, field.name) for field in fields(batch)}
    else:
        values = batch
    if isinstance(values, Mapping):
        inputs = next((key for key in INPUT_KEYS if key in values), None)
        targets = next((key for key in TARGET_KEYS if key in values), None)
        if inputs is not None and targets is not None:
            return values[inputs], values[targets]
        found = f"a {type(batch).__name__} with the keys {sorted(map(str, values))}"
    elif isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) >= 2:
        return batch[0], batch[1]
    else:
        found = f"a {type(batch).__name__}" + (f" of length {len(batch)}" if isinstance(batch, Sequence) else "")
    raise ValueError(
        f"Expected batches that start with (inputs, targets), or dicts or dataclasses with one of {INPUT_KEYS} and one "
        f"of {TARGET_KEYS}; got {found}. Pass batch_fn=..., a function from a batch to (inputs, targets)."
    )


def class_indices(targets: Any, num_classes: int, sequence: bool = False) -> Int[Tensor, " *n"]:
    """Targets as class indices: one-hot or soft labels (last dimension k) become their argmax.

    Args:
        targets: Class indices or labels.
        num_classes: k.
        sequence: Integer targets (n, T) are class indices also where T = k.

    Raises:
        ValueError: The targets are no tensor, or floating point without a last dimension of k.
    """
    if not isinstance(targets, Tensor):
        raise ValueError(
            f"Expected targets as a tensor of class indices, got {type(targets).__name__}. "
            "Pass batch_fn=..., a function from a batch to (inputs, targets)."
        )
    one_hot = not sequence and targets.ndim == 2 and targets.shape[-1] == num_classes and num_classes > 1
    if targets.is_floating_point() or one_hot:
        if not one_hot and targets.shape[-1:] != (num_classes,):
            raise ValueError(
                f"Expected class indices, or labels with one entry for each of the {num_classes} classes; "
                f"got {targets.dtype} targets of shape {tuple(targets.shape)}."
            )
        return targets.argmax(-1)
    return targets
