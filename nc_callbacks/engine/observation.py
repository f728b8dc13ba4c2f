"""The results of a look."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nc_callbacks.functional import SoftmaxExpectations
from nc_callbacks.statistics import ClassMoments, Outputs


@dataclass(frozen=True)
class ClassifierObservation:
    """Result of a look at the classifier on one split; accuracies and mismatch are shares of samples."""

    weight: Float[Tensor, "k p"] | None
    """None where the classifier is no affine map of its input; then it has no bias either."""
    bias: Float[Tensor, " k"] | None
    accuracy: float | None
    """Of the classifier; this and what follows is None where it was not asked for."""
    mismatch: float | None
    """Where classifier and nearest class mean (of the training split) disagree; None without those class means."""
    centred_mean_accuracy: float | None
    """Of argmax_c hᵀμ_c, the weight replaced by the centred class means (of the training split) and no bias."""
    errors: dict[Outputs, dict[str, Tensor]] = field(default_factory=dict)
    """Results of `OutputErrors`, by kind of outputs."""
    expectations: SoftmaxExpectations | None = None
    samples: Float[Tensor, "s columns"] | None = None
    """Index, label and outputs (k) of the chosen training samples, a row each."""
    separations: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    """AUROC, and false positive rate at 95 % TPR, of scores by their names, for each out-of-distribution loader."""


@dataclass(frozen=True)
class Observation:
    """Result of a look at one layer on one split."""

    split: str
    layer: str
    moments: ClassMoments
    """Moments of this split's features; classes without samples have NaN rows."""
    nearest_mean_accuracy: float | None
    """Share of samples whose nearest class mean (of the training split) is their own; None without those."""
    classifier: ClassifierObservation | None = None
    """At the classifier's input only."""
    ood_means: dict[str, Float[Tensor, " p"]] = field(default_factory=dict)
    """Feature means of the out-of-distribution data, by the loader's name; a single loader has the empty one."""
    whitened_accuracy: float | None = None
    """Share of samples that the whitened class means (of the training split) classify rightly; None without those."""
    projected: bool = False
    """Whether its features are a random projection of the layer's, which keeps distances."""
    present: Bool[Tensor, " all"] | None = None
    """Which classes the rows stand for, where `of_present_classes` has dropped some."""

    def by_class(self, values: Tensor) -> Tensor:
        """One value per class (or a pair of classes) with NaN for the classes that were dropped."""
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
            weight = None if classifier.weight is None else classifier.weight[keep]
            classifier = replace(classifier, weight=weight, bias=bias, expectations=expectations)
        return replace(self, moments=self.moments.observed(), classifier=classifier, present=keep)


Observations = dict[str, dict[str, Observation]]
"""By split and layer; the classifier's input is the first layer."""
