"""Inputs and targets of a batch, and calling a model on the inputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn

from nc_callbacks.distributed import is_out_of_memory
from nc_callbacks.probe.targets import class_indices

INPUT_KEYS = ("image", "x", "input")
TARGET_KEYS = ("label", "y", "target", "labels")
MODEL_KEYS = ("pixel_values", "input_ids", "inputs_embeds", "input_values", "input_features")
"""Names that transformers' models give to their main input; what stands beside it is input too."""

_POSITIONAL = ("pixel_values", "input_ids", "input_values", "input_features")
"""Those that come first in such a model's forward."""

__all__ = ["by_name", "call_model", "class_indices", "default_batch_fn", "explained"]


def default_batch_fn(batch: Any) -> tuple[Any, Any]:
    """Inputs and targets of a batch.

    - Of a pair, its items. Of a longer sequence, the first item and the only other one that can be class labels, if no
      other is a matrix that may be an input too.
    - Of a mapping or dataclass, or a named tuple with such names, what stands under ``image``, ``x`` or ``input``, and
      under ``label``, ``y``, ``target`` or ``labels``. With one of transformers' names (``pixel_values``,
      ``input_ids``, ``inputs_embeds``, ``input_values``, ``input_features``) the inputs are all tensors but the
      targets, by name, or the main one where it stands alone; see `call_model` for how a model gets them.

    Raises:
        ValueError: The batch is none of these, or leaves open which of its items are the targets.
    """
    if is_dataclass(batch) and not isinstance(batch, type):
        return _from_mapping({field.name: getattr(batch, field.name) for field in fields(batch)}, batch)
    if isinstance(batch, Mapping):
        return _from_mapping(batch, batch)
    if hasattr(batch, "_asdict") and _known_names(batch._asdict()):
        return _from_mapping(batch._asdict(), batch)
    if isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) >= 2:
        return batch[0], batch[1] if len(batch) == 2 else _target_among(batch)
    raise _unreadable(f"a {type(batch).__name__}" + (f" of length {len(batch)}" if isinstance(batch, Sequence) else ""))


def _known_names(values: Mapping[Any, Any]) -> bool:
    """Whether one of the names is that of inputs, and one that of targets."""
    return any(key in values for key in INPUT_KEYS + MODEL_KEYS) and any(key in values for key in TARGET_KEYS)


def _from_mapping(values: Mapping[Any, Any], batch: Any) -> tuple[Any, Any]:
    inputs = [key for key in INPUT_KEYS if key in values]
    targets = [key for key in TARGET_KEYS if key in values]
    main = [key for key in MODEL_KEYS if key in values and isinstance(values[key], Tensor)]
    if len(targets) != 1 or (not main and len(inputs) != 1):
        raise _unreadable(f"a {type(batch).__name__} with the keys {sorted(map(str, values))}")
    target = values[targets[0]]
    if not main:
        return values[inputs[0]], target
    named = {key: value for key, value in values.items() if key != targets[0] and isinstance(value, Tensor)}
    return (named[main[0]] if len(named) == 1 and main[0] in _POSITIONAL else named), target


def _target_among(batch: Sequence[Any]) -> Any:
    """The only item after the first that can be class labels."""
    others = [item for item in batch[1:] if isinstance(item, Tensor)]
    if not others:
        return batch[1]
    labels = [item for item in others if _can_be_labels(item)]
    inputs = [item for item in others if item.is_floating_point() and item.ndim > 1 and item.shape[1:].numel() > 1]
    if len(labels) == 1 and not inputs:
        return labels[0]
    if not labels and len(inputs) == 1 and inputs[0] is batch[1]:
        # One-hot or soft labels with what belongs to them, such as weights of samples.
        return inputs[0]
    shapes = ", ".join(f"{item.dtype} {tuple(item.shape)}" if isinstance(item, Tensor) else "…" for item in batch)
    raise _unreadable(f"{len(batch)} items ({shapes}), which leaves open which of them are the targets")


def _can_be_labels(item: Tensor) -> bool:
    if not item.is_floating_point():
        return not item.is_complex()
    return item.ndim in (1, 2) and item.shape[1:].numel() == 1 and bool((item == item.round()).all())


def _unreadable(found: str) -> ValueError:
    return ValueError(
        f"Expected batches that start with (inputs, targets), or dicts or dataclasses with one of "
        f"{INPUT_KEYS + MODEL_KEYS} and "
        f"one of {TARGET_KEYS}; got {found}. Pass batch_fn=..., a function from a batch to (inputs, targets)."
    )


def call_model(model: nn.Module, inputs: Any) -> Any:
    """Call a model on inputs: on a mapping by keywords, where its forward takes some of its keys so; else on one thing.

    Of a mapping, what forward does not know by name is left out.

    Example:
        >>> import torch
        >>> class Bag(torch.nn.Module):
        ...     def forward(self, input_ids, attention_mask=None):
        ...         return input_ids * attention_mask
        >>> ids = torch.tensor([[1, 2, 3]])
        >>> call_model(Bag(), {"input_ids": ids, "attention_mask": ids > 2, "length": 3})
        tensor([[0, 0, 3]])
    """
    if isinstance(inputs, Mapping) and all(isinstance(key, str) for key in inputs):
        keywords = _keywords(model, inputs)
        if keywords:
            return model(**keywords)
    return model(inputs)


def by_name(model: nn.Module, batch: Any, inputs: Any) -> Any:
    """Inputs under their name in the batch, for a model whose forward takes keywords alone."""
    if not isinstance(batch, Mapping) or not isinstance(inputs, Tensor):
        return inputs
    keywords = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
    if any(p.kind not in keywords for p in inspect.signature(model.forward).parameters.values()):
        return inputs
    return next(({name: part} for name, part in batch.items() if part is inputs and isinstance(name, str)), inputs)


def explained(model: nn.Module, forward: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A forward pass that says what to do where the model does not take the inputs."""

    def run(inputs: Any) -> Any:
        try:
            return forward(inputs)
        except (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            shape = f" of shape {tuple(inputs.shape)}, {inputs.dtype}" if isinstance(inputs, Tensor) else ""
            raise ValueError(
                f"The forward pass of {type(model).__name__} fails on inputs that are a {type(inputs).__name__}{shape} "
                f"({type(error).__name__}: {error}). Pass batch_fn=..., a function from a batch to (inputs, targets), "
                "or forward_fn=..., a function (module, inputs) that returns the logits."
            ) from error

    return run


def _keywords(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What of a mapping forward takes by name; nothing where it needs something else."""
    parameters = inspect.signature(model.forward).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if any(p.default is p.empty and p.name not in inputs for p in named):
        return {}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return dict(inputs)
    known = {p.name for p in named}
    return {key: value for key, value in inputs.items() if key in known}
