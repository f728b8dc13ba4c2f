"""Requests to a look, as frozen values."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch import LightningModule

from nc_callbacks.engine.outside import named_loaders
from nc_callbacks.probe import Pool
from nc_callbacks.statistics import Covariance, Outputs

_COVARIANCES: tuple[Covariance, ...] = ("none", "pooled", "per_class")

DEFAULT_CACHE = 512 * 2**20
"""Bytes of the feature cache where no callback of a trainer says how many."""

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Source:
    """Where features are found; requests that agree on it share one pass."""

    head: str | None = None
    pool: Pool = None
    batch_fn: Callable[[Any], tuple[Any, Any]] | None = None
    forward_fn: Callable[[LightningModule, Any], Any] | None = None
    ignore_index: int | None = -100
    """Samples with this target are left out."""
    online: bool = False
    """Gathered from training's own forward passes instead of a pass after the epoch."""
    max_features: int | None = None
    """Features of a layer with more are projected to these."""


@dataclass(frozen=True)
class LayerNeeds:
    """Needs of one layer's features, beside the class means; ``a | b`` serves both."""

    covariance: Covariance = "none"
    nearest_mean: bool = False
    """How often the nearest class mean is right, which needs the final class means."""
    averaged: bool | None = None
    """Whether the features are averaged over positions; None where it does not matter."""
    whitened: bool = False
    """How often the whitened class means are right, which needs those, and Σ_W."""

    def __or__(self, other: LayerNeeds) -> LayerNeeds:
        if {self.averaged, other.averaged} >= {True, False}:
            raise ValueError(
                "Two callbacks watch one layer, one by a pattern, which averages it over positions, the other by its "
                "name, which does not: name it, or give the pattern, in both."
            )
        covariance = max(self.covariance, other.covariance, key=_COVARIANCES.index)
        averaged = other.averaged if self.averaged is None else self.averaged
        nearest, whitened = self.nearest_mean or other.nearest_mean, self.whitened or other.whitened
        return LayerNeeds(covariance, nearest, averaged, whitened)

    @property
    def decisions(self) -> bool:
        """Whether something needs the final class means."""
        return self.nearest_mean or self.whitened


@dataclass(frozen=True)
class Needs:
    """Needs of a pass; ``a | b`` serves both. What is not asked for is neither kept nor computed."""

    head: LayerNeeds = LayerNeeds()
    """Of the classifier's input."""
    layers: Mapping[str, LayerNeeds] = field(default_factory=dict)
    """Of the further modules whose input is watched, by dotted name."""
    accuracy: bool = False
    """Of the classifier."""
    mismatch: bool = False
    """How often classifier and nearest class mean disagree, which needs the final class means."""
    centred_means: bool = False
    """How often the centred class means are right as a classifier, which needs the final class means."""
    errors: frozenset[Outputs] = frozenset()
    """Kinds of outputs whose errors are gathered."""
    softmax: bool = False
    """Expectations of the softmax outputs of each class."""
    samples: tuple[int, ...] = ()
    """Indices of training samples whose outputs are kept."""
    ood_loader: Any = None
    """Out-of-distribution data whose feature mean is gathered: a loader, or several by name."""
    ood_scores: bool = False
    """How well scores of samples tell that data apart, which needs the final moments."""

    @property
    def of_head(self) -> bool:
        """Whether something needs the final class means at the classifier's input."""
        return self.head.decisions or self.mismatch or self.centred_means or self.ood_scores

    @property
    def decisions(self) -> bool:
        """Whether something needs the final class means: a cache of features, or a second pass."""
        return self.of_head or any(needs.decisions for needs in self.layers.values())

    def at(self, layer: str, head: str) -> LayerNeeds:
        """Of one layer, the classifier's input or a further one."""
        of_layer = self.layers.get(layer, LayerNeeds())
        return self.head | of_layer if layer == head else of_layer

    def __or__(self, other: Needs) -> Needs:
        if None not in (self.ood_loader, other.ood_loader) and not _same(self.ood_loader, other.ood_loader):
            raise ValueError(
                "Two callbacks have different out-of-distribution loaders, and one pass takes one: pass both the same."
            )
        names = dict.fromkeys([*self.layers, *other.layers])
        none = LayerNeeds()
        return Needs(
            self.head | other.head,
            {name: self.layers.get(name, none) | other.layers.get(name, none) for name in names},
            self.accuracy or other.accuracy,
            self.mismatch or other.mismatch,
            self.centred_means or other.centred_means,
            self.errors | other.errors,
            self.softmax or other.softmax,
            tuple(dict.fromkeys(self.samples + other.samples)),
            self.ood_loader if self.ood_loader is not None else other.ood_loader,
            self.ood_scores or other.ood_scores,
        )


def _same(one: Any, other: Any) -> bool:
    first, second = named_loaders(one), named_loaders(other)
    return list(first) == list(second) and all(first[name] is second[name] for name in first)


@dataclass(frozen=True)
class Request:
    """Needs of a look, its source, and the memory that it may use to keep features."""

    source: Source
    needs: Needs
    cache_bytes: int = DEFAULT_CACHE


def parse_bytes(size: int | str) -> int:
    """Bytes of a number or a string such as ``"512MiB"`` or ``"2 GB"``.

    Raises:
        ValueError: It is neither.

    Example:
        >>> parse_bytes("1.5KiB")
        1536
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z]*)\s*", str(size))
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError(f'feature_cache must be a number of bytes or a string such as "512MiB", got {size!r}.')
    return int(float(match[1]) * _UNITS[match[2].upper()])
