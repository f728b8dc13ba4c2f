"""Layers through the depth of a model: blocks, patterns, all."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from nc_callbacks.probe.names import candidates, distinct_modules, listed, named_modules

ALL, BLOCKS = "all", "blocks"

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def is_pattern(layer: str) -> bool:
    """Whether a layer is given by a pattern and not by its name."""
    return layer in (ALL, BLOCKS) or "*" in layer


def expanded(model: nn.Module, layers: Sequence[str]) -> tuple[str, ...]:
    """Dotted names of the modules that are meant, in the model's order where a pattern is given.

    Args:
        model: The model that holds them.
        layers: Names; ``"blocks"``, see `blocks`; ``"all"``, the modules with a weight matrix; patterns such as
            ``"encoder.layer.*"``, where ``*`` stands for any characters but a dot.

    Raises:
        ValueError: Nothing is found for a pattern.

    Example:
        >>> model = nn.ModuleDict({"stem": nn.Linear(2, 2), "body": nn.Sequential(nn.Linear(2, 2), nn.Tanh())})
        >>> expanded(model, ["stem", "body.*"])
        ('stem', 'body.0', 'body.1')
    """
    found: dict[str, None] = {}
    for layer in layers:
        found.update(dict.fromkeys(_meant(model, layer)))
    return tuple(found)


def _meant(model: nn.Module, layer: str) -> list[str]:
    if not is_pattern(layer):
        return [layer]
    if layer == BLOCKS:
        names = blocks(model)
    elif layer == ALL:
        names = list(candidates(model))
    else:
        pattern = re.compile(re.escape(layer).replace(r"\*", "[^.]*"))
        names = [name for name in named_modules(model) if pattern.fullmatch(name)]
    if not names:
        raise ValueError(
            f"layers={layer!r} finds nothing in {type(model).__name__}. Name the layers: modules with a weight matrix "
            f"are {listed(candidates(model))}."
        )
    return names


def blocks(model: nn.Module) -> list[str]:
    """The blocks of a model: most modules of one class that are in no other repeated one, or else the longest sequence.

    Residual blocks, transformer blocks, dense blocks. Where no class with parts repeats, as in VGG, the layers with
    weights of the longest `nn.Sequential`.

    Example:
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.part = nn.Linear(2, 2)
        >>> blocks(nn.Sequential(nn.Linear(3, 2), Block(), Block(), nn.Linear(2, 4)))
        ['1', '2']
    """
    modules = distinct_modules(model)
    of_class: dict[type, list[str]] = {}
    for name, module in modules.items():
        if any(module.children()) and type(module) not in _CONTAINERS:
            of_class.setdefault(type(module), []).append(name)
    repeated = {kind: names for kind, names in of_class.items() if len(names) > 1}
    inside = [name for names in repeated.values() for name in names]
    outer = [[name for name in names if not _within(name, inside)] for names in repeated.values()]
    longest = max(outer, key=len, default=[])
    if len(longest) > 1:
        return longest
    sequences = [name for name, module in {"": model, **modules}.items() if isinstance(module, nn.Sequential)]
    weighted = candidates(model)
    layers = [[name for name in weighted if name.rpartition(".")[0] == sequence] for sequence in sequences]
    return max(layers, key=len, default=[])


def _within(name: str, others: list[str]) -> bool:
    return any(name.startswith(other + ".") for other in others)
