"""Matrices that no forward pass uses, and that take for features what it returns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from nc_callbacks.probe.names import unsharded
from nc_callbacks.probe.search import Match, classes_seen
from nc_callbacks.probe.trial import Trial
from nc_callbacks.state.limits import is_shard


def refuse_features(model: nn.Module, trial: Trial, match: Match, targets: Any) -> None:
    """Raise where the module that gives the model's output gives features for a classifier that did not run.

    So it is where forward returns features in eval mode, or where the loss holds the classifier.

    Raises:
        ValueError: There is a matrix of classes by as many features as the module has outputs.
    """
    k, seen = match.shape.num_classes, classes_seen(targets, match)
    with unsharded(model):
        fitting = ((name, tensor) for name, tensor in _unused(model, trial) if _takes(name, tensor, k, seen))
        sharded = any(map(is_shard, model.modules()))
        holders = [name for name, tensor in fitting if sharded or not trial.uses(tensor)]
    if holders:
        raise ValueError(
            f"{match.name!r} gives the model's {k} outputs, and {holders[0]!r}, which the forward pass did not use, "
            f"takes {k} features: forward seems to return features in eval mode. Pass forward_fn=..., a function "
            "(module, inputs) that returns the logits and runs the module that holds them, or "
            f"head={match.name!r} if that is the classifier."
        )


def _unused(model: nn.Module, trial: Trial) -> Iterator[tuple[str, Tensor]]:
    """Matrices by name that belong to no module that ran; those that a module with parts holds itself are among them.

    For it may leave them to its loss.
    """
    ran = set(trial.ran)
    known = {id(tensor) for name in ran if _is_used(trial.modules[name]) for tensor in trial.modules[name].parameters()}
    for name, module in {"": model, **trial.modules}.items():
        if (name in ran and not list(module.children())) or isinstance(module, nn.Embedding):
            continue
        for own, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if not is_lazy(tensor) and tensor.ndim >= 2 and tensor.is_floating_point() and id(tensor) not in known:
                yield f"{name}.{own}".lstrip("."), tensor


def _is_used(module: nn.Module) -> bool:
    """Whether all parameters of a module that ran took part, though its parts may not be seen to run."""
    whole = not isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)
    return (
        not list(module.children())
        or isinstance(module, torch.jit.ScriptModule)
        or (whole and type(module).__module__.startswith("torch.nn"))
    )


def _takes(name: str, tensor: Tensor, k: int, seen: int) -> bool:
    """Whether a matrix can be a classifier's on k features: classes by features, or where they are fewer, turned."""
    rows, columns = tensor.shape[0], tensor[0].numel()
    if rows >= max(seen, 2) and columns == k:
        return True
    turned = name.rpartition(".")[2] != "weight" and tensor.ndim == 2
    return turned and rows == k and max(seen, 2) <= columns < k
