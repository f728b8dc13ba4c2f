"""Layers through the depth of a model: blocks, patterns, all."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from nc_callbacks.probe.names import candidates, distinct_modules, listed, named_modules

ALL, BLOCKS = "all", "blocks"

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def is_pattern(layers: str) -> bool:
    """Whether a string that stands alone says which layers: in a list ``"blocks"`` is the name of a module."""
    return layers in (ALL, BLOCKS) or "*" in layers


def has_patterns(layers: Sequence[str] | str) -> bool:
    """Whether some layers are not given by their names."""
    return isinstance(layers, str) or any("*" in layer for layer in layers)


def expanded(model: nn.Module, layers: Sequence[str] | str) -> tuple[str, ...]:
    """Dotted names of the modules that are meant, in the model's order where a pattern is given.

    Args:
        model: The model that holds them.
        layers: Names, and patterns such as ``"encoder.layer.*"``, where ``*`` stands for any characters but a dot.
            Alone, ``"blocks"``, see `blocks`, or ``"all"``, the modules with a weight matrix.

    Raises:
        ValueError: Nothing is found for a pattern.

    Example:
        >>> model = nn.ModuleDict({"stem": nn.Linear(2, 2), "body": nn.Sequential(nn.Linear(2, 2), nn.Tanh())})
        >>> expanded(model, ["stem", "body.*"])
        ('stem', 'body.0', 'body.1')
    """
    if layers in (ALL, BLOCKS):
        return tuple(_refuse_none(model, str(layers), blocks(model) if layers == BLOCKS else list(candidates(model))))
    found: dict[str, None] = {}
    for layer in [layers] if isinstance(layers, str) else layers:
        found.update(dict.fromkeys(_meant(model, layer)))
    return tuple(found)


def _meant(model: nn.Module, layer: str) -> list[str]:
    if "*" not in layer:
        return [layer]
    pattern = re.compile(re.escape(layer).replace(r"\*", "[^.]*"))
    return _refuse_none(model, layer, [name for name in named_modules(model) if pattern.fullmatch(name)])


def _refuse_none(model: nn.Module, layers: str, names: list[str]) -> list[str]:
    if not names:
        raise ValueError(
            f"layers={layers!r} finds nothing in {type(model).__name__}. Name the layers: modules with a weight matrix "
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
