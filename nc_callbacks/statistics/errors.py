"""Errors of a classifier's outputs over a batch, and of two sets of samples together."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nc_callbacks.statistics.batches import check_range
from nc_callbacks.statistics.precision import wide_dtype


class ErrorMoments(NamedTuple):
    """The numbers of `OutputErrors.moments`, as tensors without dimensions."""

    samples: Tensor
    """n."""
    mean: Tensor
    """Of ε."""
    squares: Tensor
    """Summed squared deviations of ε from its mean."""
    off_mean: Tensor
    """Of ε̃, over samples and the k − 1 classes of each."""
    off_squares: Tensor
    """Summed squared deviations of ε̃ from its mean, averaged over the k − 1 classes of a sample."""
    sample_variances: Tensor
    """Sum over samples of the variance of ε̃ within the sample."""

    def merged(self, other: ErrorMoments) -> ErrorMoments:
        """Of both sets of samples, by the pairwise formula of Chan et al. (1979)."""
        samples = self.samples + other.samples
        share = other.samples / samples.clamp(min=1)
        gap, off_gap = other.mean - self.mean, other.off_mean - self.off_mean
        weight = self.samples * share
        return ErrorMoments(
            samples,
            self.mean + share * gap,
            self.squares + other.squares + weight * gap.square(),
            self.off_mean + share * off_gap,
            self.off_squares + other.off_squares + weight * off_gap.square(),
            self.sample_variances + other.sample_variances,
        )


def checked_outputs(
    outputs: Tensor, targets: Tensor, k: int, ignore_index: int | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows of outputs, targets in 0…k−1, which rows count, and how many targets are no class indices."""
    if targets.is_complex():
        raise ValueError(f"targets must be integer class indices, got {targets.dtype}.")
    if outputs.shape != (*targets.shape, k):
        raise ValueError(
            f"outputs must be (n, k) = {(*targets.shape, k)} to go with targets of shape {tuple(targets.shape)}, "
            f"got {tuple(outputs.shape)}."
        )
    f = outputs.detach().reshape(-1, k)
    given = targets.detach().reshape(-1)
    y = given.long()
    keep = torch.ones_like(y, dtype=torch.bool) if ignore_index is None else y != ignore_index
    wrong = keep & ((y < 0) | (y >= k))
    if given.is_floating_point():
        broken = y.to(given.dtype) != given
        wrong |= broken
        if y.device.type == "cpu" and broken.any():
            raise ValueError(f"targets must be integer class indices, got {given[broken].tolist()[:5]}.")
    # Asking a device costs a wait; there `compute` raises.
    if y.device.type == "cpu":
        check_range(y[keep], k)
    return f.to(torch.promote_types(f.dtype, torch.float32)), y.clamp(0, k - 1), keep, wrong.sum()


def softmax_errors(
    logits: Float[Tensor, "n k"], targets: Int[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n k"]]:
    """ε as the sum of the probabilities of the classes other than the target, and these, with 0 at the target."""
    f = logits.to(torch.promote_types(logits.dtype, wide_dtype(logits.device)))
    others = f.scatter(1, targets[:, None], -torch.inf)
    off = (others - f.logsumexp(1, keepdim=True)).exp()
    return off.sum(1).to(logits.dtype), off.to(logits.dtype)


def batch_errors(f: Tensor, y: Tensor, keep: Tensor, softmax: bool) -> ErrorMoments:
    """Of one batch, in two passes over it."""
    wide = wide_dtype(f.device)
    index, others = y[:, None], f.shape[1] - 1
    weight = keep.to(wide)
    n = weight.sum()
    f = torch.where(keep[:, None], f, torch.zeros_like(f)).to(wide)
    if softmax:
        epsilon, off = softmax_errors(f, y)
    else:
        epsilon, off = 1 - f.gather(1, index).squeeze(1), f.scatter(1, index, 0)
    mean = (weight * epsilon).sum() / n.clamp(min=1)
    sample_means = off.sum(1) / others
    off_mean = (weight * sample_means).sum() / n.clamp(min=1)
    deviations = off.sub_(sample_means[:, None]).scatter_(1, index, 0)
    sample_variances = deviations.square_().sum(1) / others
    return ErrorMoments(
        samples=n,
        mean=mean,
        squares=(weight * (epsilon - mean).square()).sum(),
        off_mean=off_mean,
        off_squares=(weight * (sample_variances + (sample_means - off_mean).square())).sum(),
        sample_variances=(weight * sample_variances).sum(),
    )
