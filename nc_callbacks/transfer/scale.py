"""The scale of logits at which their cross-entropy is least."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nc_callbacks.distributed import Ranks
from nc_callbacks.statistics.precision import wide_dtype


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum over all ranks where torch.distributed is initialised; else the tensor."""
    return Ranks.of_world(tensor.device).sum(tensor)


def best_scale(
    logits: Float[Tensor, "n k"],
    targets: Int[Tensor, " n"],
    over_ranks: Callable[[Tensor], Tensor] = sum_over_ranks,
) -> float:
    """The s > 0 at which the mean cross-entropy of s · logits is least (the inverse of a temperature; Guo et al. 2017).

    The cross-entropy is convex in s, so there is at most one minimum; it is found by bisection to 1e-7. Where every
    sample is classified correctly there is none, for a larger s is always better. Then s is such that the mean
    cross-entropy is log(2)/n, as if one of the n samples were undecided; no sample that is classified wrongly costs
    less than log(2), at any s.

    By default the samples of all ranks count where torch.distributed is initialised, and all must call it.

    Args:
        logits: Outputs at s = 1; the sums are in float64.
        targets: Class indices in 0…k−1, of any type that holds integers.
        over_ranks: Sums a tensor over the ranks whose samples count.

    Raises:
        ValueError: Equal logits (s = 0) are better than any positive scale; the shapes do not fit, or a target is no
            class index in 0…k−1 (on any rank).

    Example:
        >>> logits = torch.tensor([[1.0, 0.0]] * 4).double()
        >>> round(best_scale(logits, torch.tensor([0, 0, 0, 1])), 4)  # log 3: a probability of 3/4
        1.0986
    """
    if logits.ndim != 2 or logits.shape[1] < 2 or targets.shape != logits.shape[:1]:
        raise ValueError(
            f"logits must be (n, k) with k ≥ 2, targets (n,); got {tuple(logits.shape)} and {tuple(targets.shape)}."
        )
    logits, labels = logits.to(torch.promote_types(logits.dtype, wide_dtype(logits.device))), targets.long()
    wrong = (labels < 0) | (labels >= logits.shape[1]) | (labels != targets)
    labels = labels.masked_fill(wrong, 0)
    gaps = logits - logits.gather(1, labels[:, None])
    # Other classes with the sample's own logit cost log(their number + 1) at any scale.
    ties = (gaps == 0).sum(1).to(gaps.dtype).log()

    def sums(*values: Float[Tensor, " n"]) -> list[float]:
        return over_ranks(torch.stack([value.sum() for value in values])).tolist()

    # Counted over the ranks, of which none must go on alone.
    tie_loss, slope, unusable = sums(ties, gaps.mean(1), wrong.to(gaps.dtype))
    if unusable:
        here = sorted(set(targets[wrong].tolist()))[:5]
        raise ValueError(
            f"targets must be class indices in 0…{logits.shape[1] - 1}, got {here or 'others on another rank'} "
            f"({int(unusable)} in all)."
        )
    if not slope < 0:
        raise ValueError(
            "The scale cannot be fitted: on these samples the logits are no better than equal ones, at any positive "
            "scale. Check that features and targets belong together and to the data of the class means."
        )

    def too_large(scale: float) -> bool:
        norms = (scale * gaps).logsumexp(1)
        loss, slope = sums(norms, ((scale * gaps - norms[:, None]).exp() * gaps).sum(1))
        return slope >= 0 or loss - tie_loss < math.log(2)

    low = high = 1.0
    while not too_large(high):
        low, high = high, 2 * high
    while too_large(low):
        low, high = low / 2, low
    while high > (1 + 1e-7) * low:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if too_large(middle) else (middle, high)
    return math.sqrt(low * high)
