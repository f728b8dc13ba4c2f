"""Doubt: metrics of few samples without their bias, and standard errors from the same moments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from nc_callbacks.functional._common import full_precision
from nc_callbacks.functional.rounding import deviations
from nc_callbacks.statistics import ClassMoments
from nc_callbacks.statistics.precision import wide_dtype


@full_precision
def nc1_corrected(moments: ClassMoments) -> Float[Tensor, ""]:
    """`nc1` without the bias of few samples a class, dimensionless; 0 at collapse.

    A class mean of n_c samples is m_c + e_c with Cov(e_c) = Σ_c/n_c. The noise lengthens the centred class means, so
    that `nc1` is too small: 0.033 for 0.048 at 5 samples a class of an isotropic population with p = 64, k = 4. With R
    the centred class means in an orthonormal basis of the k − 1 directions orthogonal to 1, S the unbiased Σ_W (divisor
    n − k), Σ_c = S v_c/v̄ and N the noise 1/n_c · v_c/v̄ in that basis,

        E[R Rᵀ] = A + N tr S,   E[R S Rᵀ] = B + N tr S²,   nc1 = tr(A⁻¹ B A⁻¹),

    A and B being the population's. What the noise adds in the mean is taken off, and then the shift of tr(A⁻¹ B A⁻¹) by
    the fluctuations of both around their means, to second order, from the fourth moments of Gaussian noise. tr S² and
    its kin are those of Gaussian features, without bias for n − k. Where p < k the same is done for tr(S (RᵀR)⁻¹).

    Args:
        moments: With `within`.

    Returns:
        The scalar; NaN where it is not known, since class means are no further apart than their noise makes them, or
        fluctuations would shift it by more than a quarter, or there are not more samples than classes.

    Raises:
        ValueError: `within` was not gathered, or there are fewer than two classes.

    Example:
        >>> from nc_callbacks import ClassStatistics
        >>> generator = torch.Generator().manual_seed(0)
        >>> means, targets = torch.eye(64)[:4] * 8, torch.arange(20) % 4  # 5 samples a class; nc1 of the population: 3/64
        >>> statistics = ClassStatistics(4)
        >>> statistics.update(means[targets] + torch.randn(20, 64, generator=generator), targets)
        >>> round(float(nc1_corrected(statistics.compute())), 2)
        0.05
    """
    within, means = _needed(moments)
    k, p = means.shape
    n = moments.counts.to(means.dtype)
    nu = n.sum() - k
    if nu < 2:
        return torch.full_like(means[0, 0], torch.nan)
    # On the complement of 1, where the Gram matrix has an inverse.
    basis = torch.linalg.qr(torch.cat([torch.ones(1, k), torch.eye(k)[1:]]).to(means).T).Q[:, 1:]
    rows = basis.T @ deviations(means)
    noise = basis.T @ ((_shares(moments).to(means.dtype) / n)[:, None] * basis)
    value, shift = (_few_features if p < k else _few_classes)(rows, within * (n.sum() / nu), noise, nu)
    known = (value > 0) & (shift.abs() < value / 4)
    return torch.where(known, value - shift, torch.nan)


def _few_classes(rows: Tensor, s: Tensor, noise: Tensor, nu: Tensor) -> tuple[Tensor, Tensor]:
    """tr(A⁻¹ B A⁻¹) without the mean of the noise, and its shift by the noise's fluctuations."""
    gaussian = nu**2 / ((nu - 1) * (nu + 2))
    turned = rows @ s
    once = turned @ rows.T
    # tr Σ, tr Σ², tr Σ³, and R Σ² Rᵀ, without the noise of S.
    trace = s.trace()
    squares = gaussian * (s.square().sum() - trace.square() / nu)
    cubes = (((s @ s) * s).sum() - 3 * squares * trace / nu - trace**3 / nu**2).clamp(min=0)
    twice = gaussian * (turned @ turned.T - once * trace / nu) - cubes * noise
    once = once - squares * noise
    inverse = _inverse(rows @ rows.T - trace * noise)
    square = inverse @ inverse

    def mean(g: Tensor, x: Tensor, trace: Tensor) -> Tensor:
        """E[δ g δ'] of the fluctuations δ of R Rᵀ and δ' of R Rᵀ, R S Rᵀ."""
        return _fourth_moments(g, x, noise) + trace * _fourth_moments(g, noise, noise) / 2

    of_both = 2 * (once * (inverse @ mean(inverse, once, squares) @ square)).sum()
    of_both = of_both + (once * (inverse @ mean(square, once, squares) @ inverse)).sum()
    mixed = (square * mean(inverse, twice, cubes)).sum() + (inverse * mean(square, twice, cubes)).sum()
    return (inverse @ once * inverse).sum(), of_both - mixed


def _few_features(rows: Tensor, s: Tensor, noise: Tensor, nu: Tensor) -> tuple[Tensor, Tensor]:
    """tr(S C⁻¹), C = RᵀR without the mean of the noise, and its shift by the noise's fluctuations."""
    squares = noise.square().sum()
    inverse = _inverse(rows.T @ rows - noise.trace() * s)
    turned = rows.T @ noise @ rows - squares * s
    moments = _fourth_moments(inverse, turned, s) + squares * _fourth_moments(inverse, s, s) / 2
    return (s * inverse).sum(), (s * (inverse @ moments @ inverse)).sum()


def _fourth_moments(g: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return x @ g @ y + y @ g @ x + (g * y).sum() * x + (g * x).sum() * y


def standard_error(metric: Callable[[ClassMoments], Float[Tensor, ""]], moments: ClassMoments) -> Float[Tensor, ""]:
    """Standard error of a metric over samples drawn anew, class by class as many: the unit is the metric's.

    The delta method: with the metric's gradients g_c in m_c, G in Σ_W and t_c in v_c,

        s² = Σ_c g_cᵀ Σ_c g_c / n_c + 2 Σ_c (n_c/n²) (v_c/v̄)² tr(G S G S) + 2 Σ_c t_c² (v_c/v̄)² tr S² / n_c,

    Σ_c = S v_c/v̄ with S the unbiased Σ_W, or C_c's own where they were gathered (in the first term). The last two
    terms hold for features that are Gaussian within their class. The bias of few samples is no part of it: see
    `nc1_corrected`. Value ± 1.96 s covers the population's value in about 95 % of samples.

    Args:
        metric: A differentiable function of the moments' means, `within` and traces, such as
            ``lambda m: F_nc.nc1(m.within, m.means)``.
        moments: With `within`.

    Returns:
        The scalar; NaN where there are not more samples than classes.

    Raises:
        ValueError: `within` was not gathered, or there are fewer than two classes.

    Example:
        >>> from nc_callbacks import ClassStatistics
        >>> statistics = ClassStatistics(2)
        >>> statistics.update(torch.tensor([[1.0], [3.0], [7.0], [9.0]]), torch.tensor([0, 0, 1, 1]))
        >>> # The difference of two means with variance 2/2 each.
        >>> standard_error(lambda m: m.means[1, 0] - m.means[0, 0], statistics.compute()).item() ** 2
        2.0
    """
    with torch.inference_mode(False), torch.enable_grad():
        within, means = (tensor.detach().clone().requires_grad_() for tensor in _needed(moments))
        traces = moments.traces.detach().to(means.dtype).clone().requires_grad_()
        value = metric(replace(moments, within=within, means=means, traces=traces))
        found = torch.autograd.grad(value, (within, means, traces), allow_unused=True)
    n = moments.counts.to(means.dtype)
    nu = n.sum() - len(n)
    if nu < 1:
        return torch.full_like(value.detach(), torch.nan)
    unbiased, share = within.detach() * (n.sum() / nu), _shares(moments).to(means.dtype)
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


def _needed(moments: ClassMoments) -> tuple[Tensor, Tensor]:
    if moments.within is None or len(moments.counts) < 2:
        raise ValueError(
            'Expected the moments of at least two classes with their pooled covariance (covariance="pooled"), got '
            f"{len(moments.counts)} classes{'' if moments.within is not None else ' without it'}."
        )
    wide = torch.promote_types(moments.means.dtype, wide_dtype(moments.means.device))
    return moments.within.to(wide), moments.means.to(wide)


def _shares(moments: ClassMoments) -> Tensor:
    """v_c / v̄: the spread of each class beside the pooled one."""
    traces = moments.traces.detach()
    pooled = (moments.counts * traces).sum() / moments.counts.sum()
    return torch.where(pooled > 0, traces / pooled, 1)


def _inverse(matrix: Tensor) -> Tensor:
    """Of a matrix that has to be positive; NaN where it is not."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if bool(failed):
        return torch.full_like(matrix, torch.nan)
    return torch.cholesky_inverse(factor)
