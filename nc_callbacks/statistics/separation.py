"""How well a score tells two sets of samples apart."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_specificity_at_sensitivity
from torchmetrics.utilities import dim_zero_cat

from nc_callbacks.statistics.metric import StreamingMetric

SENSITIVITY = 0.95
"""The share of the samples within that a threshold has to keep."""


class ScoreSeparation(StreamingMetric):
    """AUROC of a score that is larger within the training distribution, and the false positive rate at 95 % TPR.

    AUROC is the share of pairs of a sample within and one outside of which the former has the larger score, ties
    counting half. The false positive rate is the share of samples outside at or above the largest threshold that 95 %
    of those within reach. Keeps one number a sample.

    Example:
        >>> separation = ScoreSeparation()
        >>> separation.update(torch.tensor([3.0, 2.0, 5.0]), torch.tensor([1.0, 2.5]))
        >>> auroc, rate = separation.compute()
        >>> round(float(auroc), 3), float(rate)
        (0.833, 0.5)
    """

    full_state_update = False
    higher_is_better = True
    within: list[Tensor]
    outside: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("within", [], dist_reduce_fx="cat")
        self.add_state("outside", [], dist_reduce_fx="cat")

    def update(self, within: Float[Tensor, " n"], outside: Float[Tensor, " m"]) -> None:
        """Add scores of both; either may be empty."""
        self.within.append(within)
        self.outside.append(outside)

    def compute(self) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """AUROC and false positive rate; NaN without samples on both sides, or where a score is NaN."""
        within, outside = dim_zero_cat(self.within), dim_zero_cat(self.outside)
        scores = torch.cat([within, outside])
        if not (len(within) and len(outside)) or bool(scores.isnan().any()):
            nothing = torch.tensor(torch.nan, device=scores.device)
            return nothing, nothing
        # Scores out of [0, 1] are taken for logits there, and would become the same by rounding; ranks are not.
        values, places = scores.unique(return_inverse=True)
        ranks = places.to(torch.float32 if scores.device.type == "mps" else torch.float64) / max(1, len(values) - 1)
        labels = torch.cat([torch.ones_like(within), torch.zeros_like(outside)]).long()
        auroc = binary_auroc(ranks, labels)
        specificity, _ = binary_specificity_at_sensitivity(ranks, labels, min_sensitivity=SENSITIVITY)
        return auroc, 1 - specificity
