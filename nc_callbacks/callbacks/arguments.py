"""The callbacks' shared arguments: their types, and what is refused."""

from __future__ import annotations

import difflib
import functools
import importlib.util
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule

from nc_callbacks.metrics import SPLITS, LogKey
from nc_callbacks.probe.depth import is_pattern

Split = Literal["train", "val", "test"]

Mode = Literal["epoch_end", "online"]
Epochs = Iterable[int] | Literal["log"] | None
GlobalMean = Literal["classes", "samples"]
BatchFn = Callable[[Any], tuple[Any, Any]]
ForwardFn = Callable[[LightningModule, Any], Any]

LEAST_FEATURES = 16
"""A projection to fewer keeps squared distances no better than a third."""


def spelt_right(init: Callable[..., None]) -> Callable[..., None]:
    """An ``__init__`` that names the nearest of its arguments where one is misspelt.

    Example:
        >>> @spelt_right
        ... def init(self, every_n_epochs=1): ...
        >>> init(None, every_n_epoch=2)
        Traceback (most recent call last):
        ...
        TypeError: NoneType has no argument 'every_n_epoch'; did you mean 'every_n_epochs'?
    """
    parameters = inspect.signature(init).parameters
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        for name in [] if takes_any else kwargs.keys() - parameters.keys():
            near = difflib.get_close_matches(name, list(parameters)[1:], n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(list(parameters)[1:])}."
            raise TypeError(f"{type(self).__name__} has no argument {name!r}; {hint}")
        init(self, *args, **kwargs)

    return checked


def check_names_of_loaders(ood_loader: Any) -> None:
    """Refuse names that do not fit into log keys.

    Example:
        >>> check_names_of_loaders({"val": []})
        Traceback (most recent call last):
        ...
        ValueError: An out-of-distribution loader's name is a part of log keys: without '/', and no split; got 'val'.
    """
    if not isinstance(ood_loader, Mapping):
        return
    if not ood_loader:
        raise ValueError("ood_loader holds no loader: pass one, or several by name, or None.")
    for name in ood_loader:
        if not isinstance(name, str) or not name or "/" in name or name in SPLITS:
            raise ValueError(
                f"An out-of-distribution loader's name is a part of log keys: without '/', and no split; got {name!r}."
            )


def check_arguments(
    layers: Sequence[str] | str,
    every_n_epochs: int,
    epochs: Epochs,
    splits: Sequence[str],
    mode: str,
    figures: bool | str | Path,
    pool: str | None,
    global_mean: str,
    prefix: str,
    max_features: int | None = None,
) -> None:
    """Refuse what is out of range.

    Raises:
        ValueError: Something is.
        ModuleNotFoundError: Figures are asked for and matplotlib is not installed.
    """
    if every_n_epochs < 1:
        raise ValueError(f"every_n_epochs must be at least 1, got {every_n_epochs}.")
    if isinstance(epochs, str) and epochs != "log":
        raise ValueError(f'epochs must be a list of epochs or "log", got {epochs!r}.')
    if isinstance(splits, str) or not splits or not all(map(_is_split, splits)):
        raise ValueError(f'splits must be a list of "train", "val" and "test", got {splits!r}.')
    if isinstance(layers, str) and not is_pattern(layers):
        raise ValueError(f"layers must be a list of module names, got the string {layers!r}: pass [{layers!r}].")
    if mode not in ("epoch_end", "online"):
        raise ValueError(f'mode must be "epoch_end" or "online", got {mode!r}.')
    if pool not in (None, "mean"):
        raise ValueError(f'pool must be None or "mean", got {pool!r}.')
    if global_mean not in ("classes", "samples"):
        raise ValueError(f'global_mean must be "classes" or "samples", got {global_mean!r}.')
    if max_features is not None and max_features < LEAST_FEATURES:
        raise ValueError(
            f"max_features must be None or at least {LEAST_FEATURES}, for fewer keep no distances; got {max_features}."
        )
    parts = prefix.split("/")
    if not all(parts) or set(SPLITS) & set(parts[1:]):
        raise ValueError(f'prefix must be a name such as "nc" or "study/nc", got {prefix!r}.')
    if figures and importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError("figures need matplotlib: pip install matplotlib, or pass figures=False.")


def _is_split(label: object) -> bool:
    if not isinstance(label, str):
        return False
    place = LogKey.at(label)
    return place.split in SPLITS[place.loader is not None :] and not place.layer and place.where == label
