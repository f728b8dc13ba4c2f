"""What is asked of a look, and what it finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from lightning.pytorch import LightningModule
from torch import Tensor

from nc_callbacks.functional import SoftmaxExpectations
from nc_callbacks.probe import Pool
from nc_callbacks.statistics import ClassMoments, Covariance, Outputs

_COVARIANCES: tuple[Covariance, ...] = ("none", "pooled", "per_class")


@dataclass(frozen=True)
class Source:
    """Where features are found; callbacks that agree on it share one pass."""

    head: str | None = None
    pool: Pool = None
    batch_fn: Callable[[Any], tuple[Any, Any]] | None = None
    forward_fn: Callable[[LightningModule, Any], Any] | None = None
    ignore_index: int | None = -100
    """Samples with this target are left out."""
    online: bool = False
    """Gathered from training's own forward passes instead of a pass after the epoch."""


@dataclass(frozen=True)
class Needs:
    """What a pass has to gather; ``a | b`` serves both."""

    layers: tuple[str, ...] = ()
    """Dotted names of the further modules whose input is watched."""
    covariance: Covariance = "none"
    """At the classifier's input."""
    layer_covariance: Covariance = "none"
    """At the further layers."""
    errors: frozenset[Outputs] = frozenset()
    """Kinds of outputs whose errors are gathered."""
    softmax: bool = False
    """Expectations of the softmax outputs of each class."""
    samples: tuple[int, ...] = ()
    """Indices of training samples whose outputs are kept."""
    ood_loader: Any = None
    """Out-of-distribution data whose feature mean is gathered."""

    def __or__(self, other: Needs) -> Needs:
        if None not in (self.ood_loader, other.ood_loader) and self.ood_loader is not other.ood_loader:
            raise ValueError(
                "Two callbacks have different out-of-distribution loaders, and one pass takes one: pass both the same."
            )
        return Needs(
            tuple(dict.fromkeys(self.layers + other.layers)),
            max(self.covariance, other.covariance, key=_COVARIANCES.index),
            max(self.layer_covariance, other.layer_covariance, key=_COVARIANCES.index),
            self.errors | other.errors,
            self.softmax or other.softmax,
            tuple(dict.fromkeys(self.samples + other.samples)),
            self.ood_loader if self.ood_loader is not None else other.ood_loader,
        )


@dataclass(frozen=True)
class ClassifierObservation:
    """What a look found of the classifier on one split; accuracies and mismatch are shares of samples."""

    weight: Float[Tensor, "k p"]
    bias: Float[Tensor, " k"] | None
    accuracy: float
    """Of the classifier."""
    mismatch: float | None
    """Where classifier and nearest class mean (of the training split) disagree; None without those class means."""
    centred_mean_accuracy: float | None
    """Of argmax_c hᵀμ_c, the weight replaced by the centred class means (of the training split) and no bias."""
    errors: dict[Outputs, dict[str, Tensor]] = field(default_factory=dict)
    """What `OutputErrors` computes, by kind of outputs."""
    expectations: SoftmaxExpectations | None = None
    samples: Float[Tensor, "s columns"] | None = None
    """Index, label and outputs (k) of the chosen training samples, a row each."""


@dataclass(frozen=True)
class Observation:
    """What a look found at one layer on one split."""

    split: str
    layer: str
    moments: ClassMoments
    """Moments of this split's features; classes without samples have NaN rows."""
    nearest_mean_accuracy: float | None
    """Share of samples whose nearest class mean (of the training split) is their own; None without those."""
    classifier: ClassifierObservation | None = None
    """At the classifier's input only."""
    ood_mean: Float[Tensor, " p"] | None = None
    """Feature mean of the out-of-distribution data, where there is any."""
    present: Bool[Tensor, " all"] | None = None
    """Which classes the rows stand for, where `of_present_classes` has dropped some."""

    def by_class(self, values: Tensor) -> Tensor:
        """A value a class (or a pair of classes) with NaN for the classes that were dropped."""
        if self.present is None:
            return values
        rows = self.present.nonzero().squeeze(1)
        places = torch.meshgrid(*[rows] * values.ndim, indexing="ij")
        full = torch.full([len(self.present)] * values.ndim, torch.nan, dtype=values.dtype, device=values.device)
        return full.index_put(places, values)

    def of_present_classes(self) -> Observation:
        """The same without the rows of classes that have no samples in this split."""
        keep = self.moments.present
        if keep.all():
            return self
        classifier = self.classifier
        if classifier is not None:
            bias = None if classifier.bias is None else classifier.bias[keep]
            expectations = classifier.expectations
            if expectations is not None:
                products = expectations.products[keep][:, keep][:, :, keep]
                expectations = SoftmaxExpectations(expectations.probabilities[keep][:, keep], products)
            classifier = replace(classifier, weight=classifier.weight[keep], bias=bias, expectations=expectations)
        return replace(self, moments=self.moments.observed(), classifier=classifier, present=keep)
