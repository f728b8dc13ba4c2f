"""A model's own classifier, checked to have a weight and a bias that can be set."""

from __future__ import annotations

from itertools import chain, islice
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import distribute_tensor

from nc_callbacks.data.loader import own_loaders
from nc_callbacks.engine.passes import Passes
from nc_callbacks.probe import Head, named_head
from nc_callbacks.probe.names import distinct_modules, refuse_lazy, unsharded, whole

_TRIED = 10
"""Batches among which one with targets is looked for."""


def own_head(model: LightningModule, name: str) -> nn.Module:
    """The classifier of that name, whose weight and bias can be set.

    Raises:
        ValueError: They are not parameters of its own, or of another module as well.
    """
    module = named_head(model, name)
    for kind in ("weight", "bias"):
        if not isinstance(getattr(module, kind, None), Tensor):
            continue
        parameter = module._parameters.get(kind)
        if parameter is None:
            raise ValueError(
                f"The {kind} of {name!r} ({type(module).__name__}) is no parameter of its own, so CentredMeanInit "
                "cannot set it: take off weight_norm, spectral_norm or whatever else computes it, or pass the name of "
                "the module that holds the parameter as head=...."
            )
        sharing = [other for other, m in distinct_modules(model).items() if _holds(m, parameter) and m is not module]
        if sharing:
            raise ValueError(
                f"The {kind} of {name!r} is that of {', '.join(map(repr, sharing))} too, which CentredMeanInit would "
                "overwrite: untie them, or leave this callback out."
            )
    return module


def _holds(module: nn.Module, parameter: nn.Parameter) -> bool:
    return any(own is parameter for own in module._parameters.values())


def checked_head(passes: Passes, model: LightningModule) -> Head:
    """The classifier, held to its contract on the first batch with targets, whose weight and bias can be set.

    Raises:
        ValueError: It breaks it, or its input is not multiplied by the rows of its weight.
    """
    refuse_lazy(model)
    head = passes.checked_head(*_first_pair(passes))
    with unsharded(model):
        module = own_head(model, head.name)
        weight, _ = head.weight_and_bias(module)
        own = getattr(module, "weight", None)
        fits = isinstance(own, Tensor) and weight is not None and own.shape[0] == head.num_classes
        if not (fits and torch.allclose(whole(own).flatten(1), weight, rtol=1e-3, atol=1e-6)):  # type: ignore[arg-type]
            raise ValueError(
                f"The classifier {head.name!r} ({type(module).__name__}) does not multiply its input with the rows of "
                "a parameter named weight, so CentredMeanInit cannot set it: use torch.nn.Linear, or leave this "
                "callback out."
            )
    return head


def _first_pair(passes: Passes) -> tuple[Any, Any]:
    loader = own_loaders(passes.trainer.train_dataloader)[0].loader
    read = (passes.inputs_and_targets(raw, "train") for raw in islice(loader, _TRIED))
    first = next(read, None)
    if first is None:
        raise ValueError("The train loader is empty: it gave no batch.")
    return next((pair for pair in chain([first], read) if pair[1] is not None), first)


def set_parameter(parameter: Tensor, value: Tensor) -> None:
    """Write a value into a parameter in place, sharded or not."""
    value = value.to(parameter.device, parameter.dtype).view(parameter.shape)
    if isinstance(mesh := getattr(parameter, "device_mesh", None), DeviceMesh):
        value = distribute_tensor(value, mesh, parameter.placements)  # type: ignore[attr-defined]
    parameter.copy_(value)
