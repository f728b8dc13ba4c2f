"""Modules by name, and which of them can be a classifier."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Names that wrappers give to the module they wrap."""

_NO_HEADS = (nn.Embedding, nn.EmbeddingBag, nn.Bilinear, nn.RNNBase, nn.MultiheadAttention)
"""Modules with a matrix that is not applied to one input as a classifier's is."""


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """All submodules by dotted name, without the wrappers that torch.compile, FSDP and checkpointing put between.

    A module with two names is there under both.
    """
    named = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if own := ".".join(part for part in name.split(".") if part not in _WRAPPERS):
            # The wrapped module comes after its wrapper, and is the one that is meant.
            named[own] = module
    return named


def distinct_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The same, each module under the first of its names."""
    found: dict[nn.Module, str] = {}
    for name, module in named_modules(model).items():
        found.setdefault(module, name)
    return {name: module for module, name in found.items()}


def classifier_weight(module: nn.Module) -> Tensor | None:
    """The weight of a module that can be a linear classifier (k rows, one a class), else None."""
    weight = None if isinstance(module, _NO_HEADS) else _read_weight(module)
    return weight if isinstance(weight, Tensor) and not is_lazy(weight) and weight.ndim >= 2 else None


def _read_weight(module: nn.Module) -> Any:
    """The weight, without the step that spectral_norm makes where it is read in train mode."""
    if not is_parametrized(module, "weight"):
        return getattr(module, "weight", None)
    computed: Any = module.parametrizations
    stepping = [part for part in computed["weight"].modules() if part.training]
    for part in stepping:
        part.training = False
    try:
        return module.weight
    finally:
        for part in stepping:
            part.training = True


def candidates(model: nn.Module) -> dict[str, nn.Module]:
    """Modules that can be the classifier, by dotted name."""
    return {name: module for name, module in distinct_modules(model).items() if classifier_weight(module) is not None}


def named_module(model: nn.Module, name: str, what: str) -> nn.Module:
    """The module of that dotted name.

    Raises:
        ValueError: There is none; lists those with a weight matrix.
    """
    if name not in (modules := named_modules(model)):
        raise ValueError(
            f"{what} {name!r} is not a module of {type(model).__name__}. Modules with a weight matrix: "
            f"{listed(candidates(model))}."
        )
    return modules[name]


def named_head(model: nn.Module, name: str) -> nn.Module:
    """The classifier of that dotted name, as far as can be told before it runs.

    Raises:
        ValueError: There is no such module, or it cannot have a row of weights a class.
    """
    module = named_module(model, name, "head")
    if isinstance(module, _NO_HEADS):
        raise ValueError(
            f"head {name!r} ({type(module).__name__}) is no map from one vector of features to an output a class. "
            f"Candidates: {listed(candidates(model))}."
        )
    if next(_tensors(module), None) is None:
        raise ValueError(
            f"head {name!r} ({type(module).__name__}) has no weight matrix, so it has no row per class. "
            f"Candidates: {listed(candidates(model))}."
        )
    weight = classifier_weight(module)
    if weight is not None and weight.shape[0] < 2 and isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
        refuse_single_output(name)
    return module


def _tensors(module: nn.Module) -> Iterator[Any]:
    """Parameters and buffers of a module; of one with packed weights, those that its state holds."""
    yield from module.parameters()
    yield from module.buffers()
    yield from (value for key, value in module.state_dict().items() if "packed_params" in key)


def refuse_single_output(name: str) -> None:
    """Raise, for a classifier with one output.

    Raises:
        ValueError: Always.
    """
    raise ValueError(
        f"head {name!r} has 1 output; neural collapse compares at least 2 classes. For a binary task use a classifier "
        "with 2 outputs and cross-entropy, which is the same model."
    )


def refuse_lazy(model: nn.Module) -> None:
    """Raise where a parameter has no shape yet, for what sets parameters before training.

    Raises:
        ValueError: There is one.
    """
    for name, module in named_modules(model).items():
        if any(map(is_lazy, (*module.parameters(recurse=False), *module.buffers(recurse=False)))):
            raise ValueError(
                f"{name!r} ({type(module).__name__}) gets its shape in its first forward pass, which has not been "
                "made, and so the model has no features yet to start a classifier from: run it once on a batch in "
                "setup or configure_model."
            )


def check_names(model: nn.Module, head: str | None, layers: Sequence[str] = ()) -> None:
    """Check what can be told of names once the module has made its layers.

    Raises:
        ValueError: A name is not in the model, or the head cannot be a classifier.
    """
    if head is not None:
        named_head(model, head)
    for layer in layers:
        named_module(model, layer, "layer")


def inside_script(model: nn.Module, name: str) -> str:
    """What a message adds where a module is part of a scripted one."""
    for holder, module in named_modules(model).items():
        if name.startswith(holder + ".") and isinstance(module, torch.jit.ScriptModule):
            return f" (it is inside the TorchScript module {holder!r}, whose parts run unseen)"
    return ""


def listed(names: Iterable[str]) -> str:
    """Names for a message."""
    names = list(names)
    return ", ".join(map(repr, names[:20])) + (f" and {len(names) - 20} more" if len(names) > 20 else "") or "none"


@contextmanager
def unsharded(model: nn.Module, writeback: bool = False) -> Iterator[None]:
    """Whole parameters, where FullyShardedDataParallel keeps flat parts of them; changes are kept on demand."""
    with ExitStack() as stack:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            from torch.distributed.fsdp import FullyShardedDataParallel

            if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
                stack.enter_context(FullyShardedDataParallel.summon_full_params(model, writeback=writeback))
        yield


def whole(tensor: Tensor) -> Tensor:
    """A copy without gradient, gathered from all ranks where it is a DTensor."""
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.clone()
