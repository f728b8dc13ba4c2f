"""Finding a model's classifier."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Names that wrappers give to the module they wrap."""


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """All submodules by dotted name, without the wrappers that torch.compile, FSDP and checkpointing put between."""
    named = {}
    for name, module in model.named_modules():
        if own := ".".join(part for part in name.split(".") if part not in _WRAPPERS):
            # The wrapped module comes after its wrapper, and is the one that is meant.
            named[own] = module
    return named


def classifier_weight(module: nn.Module) -> Tensor | None:
    """The weight of a module that can be a linear classifier (k rows, one a class), else None."""
    weight = _read_weight(module)
    linear = isinstance(weight, Tensor) and weight.ndim >= 2 and not isinstance(module, nn.Embedding | nn.EmbeddingBag)
    return weight if linear else None


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
    return {name: module for name, module in named_modules(model).items() if classifier_weight(module) is not None}


def named_module(model: nn.Module, name: str, what: str) -> nn.Module:
    """The module of that dotted name.

    Raises:
        ValueError: There is none; lists those with a weight matrix.
    """
    if name not in (modules := named_modules(model)):
        raise ValueError(
            f"{what} {name!r} is not a module of {type(model).__name__}. Modules with a weight matrix: "
            f"{_listed(candidates(model))}."
        )
    return modules[name]


def named_head(model: nn.Module, name: str) -> nn.Module:
    """The classifier of that dotted name.

    Raises:
        ValueError: There is no such module, or it has no weight with one row a class.
    """
    module = named_module(model, name, "head")
    weight = classifier_weight(module)
    if weight is None:
        raise ValueError(
            f"head {name!r} ({type(module).__name__}) has no weight matrix, so it has no row a class. "
            f"Candidates: {_listed(candidates(model))}."
        )
    if weight.shape[0] < 2:
        raise ValueError(
            f"head {name!r} has {weight.shape[0]} output; neural collapse compares at least 2 classes. For a binary "
            "task use a classifier with 2 outputs."
        )
    return module


def find_head(model: nn.Module, forward: Callable[[], Any]) -> str:
    """Dotted name of the classifier: among the modules that run and have k weight rows, the one that gives the output.

    k is the last dimension of what `forward` returns (a tensor, ``.logits``, ``["logits"]``, or the first tensor of a
    tuple). A single module with k rows is the classifier. Where there are several, it is the one whose output, or its
    softmax, log-softmax or sigmoid, is what `forward` returns.

    Args:
        model: Searched for modules with a weight.
        forward: Runs the model on one batch and returns its output. Called once, and once more to tell candidates
            apart.

    Raises:
        ValueError: No candidate, or several that cannot be told apart: lists them.
    """
    ran: list[str] = []
    with unsharded(model):
        watched = candidates(model)
        shapes = {name: tuple(classifier_weight(module).shape) for name, module in watched.items()}  # type: ignore
    with ExitStack() as hooks:
        for name, module in watched.items():

            def note(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
                if _is_fully_connected(shapes[name], args):
                    ran.append(name)

            hooks.callback(module.register_forward_hook(note).remove)
        logits = _logits(forward())
    if logits is None:
        raise ValueError(
            f"The model's forward returns no logits to tell the classifier by. Pass head=..., one of {_listed(ran)}, "
            "and forward_fn=... if forward does not run it."
        )
    k = logits.shape[_class_dim(logits)] if logits.ndim > 1 else 1
    rows = list(dict.fromkeys(ran))
    fitting = [name for name in rows if shapes[name][0] == k]
    if len(fitting) > 1:
        fitting = _giving(logits, fitting, watched, forward) or fitting
    if not fitting:
        raise ValueError(
            f"No classifier found: the model's output has shape {tuple(logits.shape)}, and no fully connected module "
            f"that ran has {k} weight rows. Modules that ran: {_listed(rows)}. Pass head=... (and forward_fn=... if "
            "forward does not run the classifier)."
        )
    if len(fitting) > 1:
        raise ValueError(f"Several modules can be the classifier: {_listed(fitting)}. Pass head=..., one of them.")
    return fitting[0]


def _giving(logits: Tensor, names: list[str], modules: dict[str, nn.Module], forward: Callable[[], Any]) -> list[str]:
    """Those of the named modules whose output is what the model returns."""
    outputs: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for name in names:

            def keep(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
                outputs[name] = output

            hooks.callback(modules[name].register_forward_hook(keep).remove)
        logits = _logits(forward())  # type: ignore[assignment]
    dim = _class_dim(logits)
    final = (lambda x: x, lambda x: x.softmax(dim), lambda x: x.log_softmax(dim), torch.sigmoid)

    def gives(output: Tensor) -> bool:
        if output.numel() != logits.numel():
            return False
        flat = output.reshape(logits.shape)
        return any(torch.equal(f(flat), logits) for f in final)

    return [name for name, output in outputs.items() if gives(output)]


def _is_fully_connected(shape: tuple[int, ...], args: Any) -> bool:
    """Whether each output of a module with a weight of that shape sees a sample's (or position's) whole input."""
    if not args or not isinstance(args[0], Tensor) or not args[0].is_floating_point():
        return False
    x = args[0]
    return x.ndim >= 2 and math.prod(shape[1:]) == (x.shape[-1] if len(shape) == 2 else x[0].numel())


def _logits(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping) and isinstance(output.get("logits"), Tensor):
        return output["logits"]
    if isinstance(logits := getattr(output, "logits", None), Tensor):
        return logits
    if isinstance(output, Sequence):
        return next((item for item in output if isinstance(item, Tensor)), None)
    return None


def _class_dim(logits: Tensor) -> int:
    """1 for (n, k), (n, k, 1, 1) and the like, −1 for (n, …, k)."""
    return 1 if all(size == 1 for size in logits.shape[2:]) else -1


def _listed(names: Any) -> str:
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
