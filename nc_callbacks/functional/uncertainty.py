"""Standard errors of metrics, from the same moments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from nc_callbacks.statistics import ClassMoments
from nc_callbacks.statistics.precision import wide_dtype


def standard_error(metric: Callable[[ClassMoments], Float[Tensor, ""]], moments: ClassMoments) -> Float[Tensor, ""]:
    """Standard error of a metric over samples drawn anew, class by class as many: the unit is the metric's.

    The delta method: with the metric's gradients g_c in m_c, G in Σ_W and t_c in v_c,

        s² = Σ_c g_cᵀ Σ_c g_c / n_c + 2 Σ_c (n_c/n²) (v_c/v̄)² tr(G S G S) + 2 Σ_c t_c² (v_c/v̄)² tr S² / n_c,

    Σ_c = S v_c/v̄ with S the unbiased Σ_W, or C_c's own where they were gathered (in the first term). The last two
    terms hold for features that are Gaussian within their class. The bias of few samples is no part of it: see
    `nc_callbacks.functional.corrected`. Value ± 1.96 s covers the population's value in about 95 % of samples.

    Args:
        metric: A differentiable function of the moments' means, `within` and traces, such as
            ``lambda m: F_nc.nc1(m.within, m.means)``.
        moments: With `within`.

    Returns:
        The scalar; NaN where the metric is, or there are not more samples than classes.

    Raises:
        ValueError: `within` was not gathered, or there are fewer than two classes.

    Example:
        >>> from nc_callbacks import ClassStatistics
        >>> statistics = ClassStatistics(2)
        >>> statistics.update(torch.tensor([[1.0], [3.0], [7.0], [9.0]]), torch.tensor([0, 0, 1, 1]))
        >>> # The difference of two means with variance 2/2 each.
        >>> standard_error(lambda m: m.means[1, 0] - m.means[0, 0], statistics.compute()).square()
        tensor(2.0000, dtype=torch.float64)
    """
    with torch.inference_mode(False), torch.enable_grad():
        within, means = (tensor.detach().clone().requires_grad_() for tensor in needed(moments))
        traces = moments.traces.detach().to(means.dtype).clone().requires_grad_()
        value = metric(replace(moments, within=within, means=means, traces=traces))
        found = torch.autograd.grad(value, (within, means, traces), allow_unused=True)
    n = moments.counts.to(means.dtype)
    nu = n.sum() - len(n)
    if nu < 1 or bool(value.isnan()):
        return torch.full_like(value.detach(), torch.nan)
    unbiased, share = within.detach() * (n.sum() / nu), shares(moments).to(means.dtype)
    variance = torch.zeros_like(n[0])
    if (of_means := found[1]) is not None:
        if moments.covariances is None:
            variance += ((of_means @ unbiased * of_means).sum(1) * share / n).sum()
        else:
            covariances = moments.covariances.to(means.dtype) * (n / (n - 1).clamp(min=1))[:, None, None]
            variance += (torch.einsum("cp,cpq,cq->c", of_means, covariances, of_means) / n).sum()
    if (of_within := found[0]) is not None:
        turned = (of_within + of_within.T) / 2 @ unbiased
        variance += 2 * (n * share.square()).sum() / n.sum().square() * (turned * turned.T).sum()
    if (of_traces := found[2]) is not None:
        variance += 2 * ((of_traces * share).square() / n).sum() * unbiased.square().sum()
    return variance.sqrt().to(value.dtype)


def needed(moments: ClassMoments) -> tuple[Tensor, Tensor]:
    """Σ_W and class means, in float64."""
    if moments.within is None or len(moments.counts) < 2:
        raise ValueError(
            'Expected the moments of at least two classes with their pooled covariance (covariance="pooled"), got '
            f"{len(moments.counts)} classes{'' if moments.within is not None else ' without it'}."
        )
    wide = torch.promote_types(moments.means.dtype, wide_dtype(moments.means.device))
    return moments.within.to(wide), moments.means.to(wide)


def shares(moments: ClassMoments) -> Tensor:
    """v_c / v̄: the spread of each class beside the pooled one."""
    traces = moments.traces.detach()
    pooled = (moments.counts * traces).sum() / moments.counts.sum()
    return torch.where(pooled > 0, traces / pooled, 1)
