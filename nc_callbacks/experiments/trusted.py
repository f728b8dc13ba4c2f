"""Objects from the configuration in a run's folder, which may be anybody's: only what is on a list is made.

Hydra's own `instantiate` calls whatever a ``_target_`` names, `torch.load` of a pickle for one.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningDataModule
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

CLASSES: dict[str, tuple[type, ...]] = {
    "nc_callbacks.experiments.data": (LightningDataModule,),
    "nc_callbacks.experiments.image_folder": (LightningDataModule,),
    "nc_callbacks.experiments.models": (nn.Module,),
    "nc_callbacks.experiments.losses": (nn.Module,),
    "torch.nn": (nn.Module,),
    "torch.optim": (torch.optim.Optimizer, LRScheduler),
}
"""Modules, those within them included, and the kinds of classes that are made of each."""

FUNCTIONS = ("nc_callbacks.experiments.models",)
"""Modules whose functions make models."""

MARKS = ("_target_", "_args_", "_partial_", "_convert_")

_NAME = re.compile(r"\$\{([^${}:]+)\}")
"""An interpolation without another in it; one with a colon calls a resolver, which may do anything."""

_DEPTH = 50


class UntrustedError(ValueError):
    """A configuration asks for what is not on the list."""


def read_config(file: Path) -> dict[str, Any]:
    """Hydra's configuration of a run, its interpolations as they stand.

    Raises:
        ValueError: It cannot be read, or is no mapping.
    """
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read as a configuration: {' '.join(str(error).split())}.") from error
    if not isinstance(config, dict):
        raise ValueError(f"Expected {file} to hold a mapping, got {type(config).__name__}.")
    return config


def make(config: Mapping[str, Any], key: str, **further: Any) -> Any:
    """Make what stands under a key of a configuration, and all that is nested in it.

    Args:
        config: A run's whole configuration, to which interpolations refer.
        key: Such as ``model``.
        further: Arguments for the outermost.

    Raises:
        UntrustedError: A target is not on the list, or the configuration does what only Hydra may be asked to do.
        ValueError: There is nothing to make under the key.
    """
    node = _resolved(config.get(key), config)
    if not isinstance(node, dict) or "_target_" not in node:
        raise ValueError(f"Expected the configuration to say with _target_ what {key} is, got {node!r}.")
    return _made({**node, **further})


def allowed_target(name: Any) -> Any:
    """The class or function of that name.

    Raises:
        UntrustedError: It is not on the list.
    """
    module, _, attribute = name.rpartition(".") if isinstance(name, str) else ("", "", "")
    home = next((home for home in CLASSES if f"{module}.".startswith(f"{home}.")), None)
    if home is not None and not attribute.startswith("_"):
        try:
            target = getattr(importlib.import_module(module), attribute, None)
        except ImportError:
            target = None
        # What a module has imported from elsewhere is not the module's own.
        own = f"{getattr(target, '__module__', '')}.".startswith(f"{home}.")
        if own and isinstance(target, type) and issubclass(target, CLASSES[home]):
            return target
        if own and home in FUNCTIONS and callable(target) and not isinstance(target, type):
            return target
    raise UntrustedError(
        f"The configuration in the run's folder asks for {name!r}. From a folder only this package's data, models and "
        "losses and the classes of torch.nn and torch.optim are made; give the backbone as package.module:function."
    )


def _made(node: Any) -> Any:
    if isinstance(node, list):
        return [_made(item) for item in node]
    if not isinstance(node, dict):
        return node
    if "_target_" not in node:
        return {key: _made(value) for key, value in node.items()}
    target = allowed_target(node["_target_"])
    if unknown := [key for key in node if str(key).startswith("_") and key not in MARKS]:
        raise UntrustedError(f"The configuration in the run's folder has {unknown[0]!r}, which is not followed here.")
    positional = [_made(item) for item in node.get("_args_") or []]
    named = {key: _made(value) for key, value in node.items() if key not in MARKS}
    if node.get("_partial_"):
        return functools.partial(target, *positional, **named)
    return target(*positional, **named)


def _resolved(node: Any, config: Mapping[str, Any], depth: int = 0) -> Any:
    """A node with the values that its interpolations refer to."""
    if depth > _DEPTH:
        raise UntrustedError("The configuration in the run's folder refers to itself, or is nested too deep.")
    if isinstance(node, dict):
        return {key: _resolved(value, config, depth + 1) for key, value in node.items()}
    if isinstance(node, list):
        return [_resolved(item, config, depth + 1) for item in node]
    if not isinstance(node, str) or "${" not in node:
        return node
    if whole := _NAME.fullmatch(node):
        return _resolved(_looked_up(whole[1], config), config, depth + 1)
    inner = _NAME.sub(lambda found: str(_resolved(_looked_up(found[1], config), config, depth + 1)), node)
    if inner == node:
        raise UntrustedError(
            f"The configuration in the run's folder has {node!r}: only references to its own keys are followed."
        )
    return _resolved(inner, config, depth + 1)


def _looked_up(name: str, config: Mapping[str, Any]) -> Any:
    found: Any = config
    for part in name.split("."):
        if not isinstance(found, Mapping) or part not in found:
            raise UntrustedError(f"The configuration in the run's folder refers to {name!r}, which it does not have.")
        found = found[part]
    return found
