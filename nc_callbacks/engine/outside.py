"""Scores of samples by the moments of the training split, and how well they tell other data apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from nc_callbacks.distributed import Ranks
from nc_callbacks.functional import energy_score, nci_score, nearest_mean_score
from nc_callbacks.functional.outside import Principal, Whitening
from nc_callbacks.statistics import ClassMoments
from nc_callbacks.statistics.separation import ScoreSeparation

T = TypeVar("T")

Scored = dict[str, list[Tensor]]
"""Scores of batches, by the score's name."""


@dataclass(frozen=True)
class Scorer:
    """Scores of samples at the classifier's input, larger within the training distribution."""

    means: Float[Tensor, "k p"]
    """Of the training split's classes that have samples."""
    centre: Float[Tensor, " p"]
    weight: Float[Tensor, "k p"] | None
    """None where the classifier has none."""
    whitening: Whitening | None
    principal: Principal | None

    @classmethod
    def of(cls, moments: ClassMoments, weight: Tensor | None, projected: bool) -> Scorer:
        """By the moments of the training split; says once what cannot be scored.

        Args:
            moments: At the classifier's input, with Σ_W.
            weight: W.
            projected: Whether the features are projected, which keeps no covariance.
        """
        seen = moments.observed()
        whitening = None if projected else _or_nothing("mahalanobis", lambda: Whitening.of(moments))
        principal = None if projected else _or_nothing("neco", lambda: Principal.of(moments))
        return cls(seen.means, seen.sample_mean, weight, whitening, principal)

    @property
    def names(self) -> list[str]:
        """Of the scores, the same on all ranks."""
        given = {"nci": self.weight, "neco": self.principal, "mahalanobis": self.whitening}
        return ["energy", "nearest_mean", *(name for name, part in given.items() if part is not None)]

    def scores(self, features: Float[Tensor, "n p"], outputs: Float[Tensor, "n k"]) -> dict[str, Tensor]:
        """Of each sample, by the score's name."""
        found = {"energy": energy_score(outputs), "nearest_mean": nearest_mean_score(features, self.means)}
        if self.weight is not None:
            found["nci"] = nci_score(features, self.weight, self.centre, outputs.argmax(1))
        if self.principal is not None:
            found["neco"] = self.principal.score(features)
        if self.whitening is not None:
            found["mahalanobis"] = self.whitening.score(features)
        return {name: values.to(torch.float32) for name, values in found.items()}


def _or_nothing(name: str, make: Callable[[], T]) -> T | None:
    try:
        return make()
    except ValueError as error:
        rank_zero_warn(f"ood_auroc_{name} and ood_fpr_{name} are not measured: {error}")
        return None


def add_scores(held: Scored, scores: dict[str, Tensor]) -> None:
    """Add those of a batch."""
    for name, values in scores.items():
        held.setdefault(name, []).append(values)


def named_loaders(ood_loader: Any) -> dict[str, Any]:
    """Loaders of out-of-distribution data by name; a single one has none, the empty string.

    Example:
        >>> named_loaders(None), named_loaders([1]), named_loaders({"svhn": [2]})
        ({}, {'': [1]}, {'svhn': [2]})
    """
    if isinstance(ood_loader, Mapping):
        return dict(ood_loader)
    return {} if ood_loader is None else {"": ood_loader}


def separations(within: Scored, outside: Scored, scorer: Scorer, ranks: Ranks) -> dict[str, tuple[float, float]]:
    """AUROC and false positive rate of each score, of all ranks' samples; every rank has to ask."""
    empty = scorer.means.new_zeros(0, dtype=torch.float32)
    found = {}
    for name in scorer.names:
        separation = ScoreSeparation(process_group=ranks.group, sync_on_compute=ranks.size > 1).to(empty.device)
        separation.update(torch.cat([empty, *within.get(name, [])]), torch.cat([empty, *outside.get(name, [])]))
        auroc, rate = ranks.all_or_none(separation.compute)
        found[name] = float(auroc), float(rate)
    return found
