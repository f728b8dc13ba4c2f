"""Metrics of few samples a class, without the bias that the noise of class means gives them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from nc_callbacks.functional._common import full_precision, same_shape
from nc_callbacks.functional.rounding import deviations
from nc_callbacks.functional.uncertainty import needed, shares
from nc_callbacks.statistics import ClassMoments


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
        fluctuations shift it by more than half, or there are not more samples than classes.

    Raises:
        ValueError: `within` was not gathered, or there are fewer than two classes.

    Example:
        >>> from nc_callbacks import ClassStatistics
        >>> generator = torch.Generator().manual_seed(0)
        >>> # In the population nc1 is 3/64 = 0.047.
        >>> means, targets = torch.eye(64)[:4] * 8, torch.arange(200) % 4
        >>> statistics = ClassStatistics(4)
        >>> statistics.update(means[targets] + torch.randn(200, 64, generator=generator), targets)
        >>> round(float(nc1_corrected(statistics.compute())), 2)
        0.05
    """
    within, means = needed(moments)
    k, p = means.shape
    n = moments.counts.to(means.dtype)
    nu = n.sum() - k
    if nu < 2:
        return torch.full_like(means[0, 0], torch.nan)
    # On the complement of 1, where the Gram matrix has an inverse.
    basis = torch.linalg.qr(torch.cat([torch.ones(1, k), torch.eye(k)[1:]]).to(means).T).Q[:, 1:]
    rows = basis.T @ deviations(means)
    noise = basis.T @ ((shares(moments).to(means.dtype) / n)[:, None] * basis)
    value, shift = (_few_features if p < k else _few_classes)(rows, within * (n.sum() / nu), noise, nu)
    corrected = value - shift
    known = (value > 0) & (shift.abs() < corrected / 2)
    return torch.where(known, corrected, torch.nan)


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


@full_precision
def nc1_cdnv_corrected(moments: ClassMoments) -> Float[Tensor, ""]:
    """`nc1_cdnv` without the bias of few samples a class, dimensionless; 0 at collapse.

    With s_c = v_c n_c/(n_c − 1), a squared distance of two class means is s_c/n_c + s_c'/n_c' too large in the mean;
    that is taken off, and the shift of its inverse by its fluctuations, to second order. Takes k × k matrices.

    Args:
        moments: With `within`.

    Returns:
        The scalar; NaN where it is not known: a class has one sample, class means are no further apart than their noise
        makes them, or the shift is more than a quarter.

    Raises:
        ValueError: `within` was not gathered, or there are fewer than two classes.

    Example:
        >>> from nc_callbacks import ClassStatistics
        >>> generator = torch.Generator().manual_seed(0)
        >>> # In the population 64/(2·8²) = 0.5; the uncorrected value is 0.33.
        >>> means, targets = torch.eye(64)[:4] * 8 / 2**0.5, torch.arange(20) % 4
        >>> statistics = ClassStatistics(4)
        >>> statistics.update(means[targets] + torch.randn(20, 64, generator=generator) / 2**0.5, targets)
        >>> round(float(nc1_cdnv_corrected(statistics.compute())), 1)
        0.5
    """
    within, means = needed(moments)
    k, n = len(means), moments.counts.to(means.dtype)
    s = _unbiased_traces(moments, n)
    nu = n.sum() - k
    unbiased = within * (n.sum() / nu.clamp(min=1))
    squares = (unbiased.square().sum() - unbiased.trace().square() / nu.clamp(min=1)).clamp(min=0)
    rows = deviations(means)
    one, other = torch.triu_indices(k, k, 1, device=means.device)
    gap = _squared_distances(rows @ rows.T)[one, other] - (s / n)[one] - (s / n)[other]
    share = (shares(moments).to(n) / n)[one] + (shares(moments).to(n) / n)[other]
    along = (_squared_distances(rows @ unbiased @ rows.T)[one, other] - squares * share).clamp(min=0)
    fluctuation = (4 * along * share + 2 * squares * share.square()) / gap.square()
    values = (s[one] + s[other]) / (2 * gap)
    value, shift = values.mean(), (values * fluctuation).mean()
    known = (gap > 0).all() & (shift.abs() < value / 4)
    return torch.where(known, value - shift, torch.nan)


@full_precision
def wm_cosine_corrected(weight: Float[Tensor, "k p"], moments: ClassMoments) -> Float[Tensor, " k"]:
    """`wm_cosine` without the bias of few samples a class: Cos(w_c, μ_c) for each class, in about [−1, 1].

    The noise of the class means lengthens μ_c by τ_c = (1 − 2/k) s_c/n_c + Σ_j s_j/n_j / k² in the mean of its square,
    s_c = v_c n_c/(n_c − 1), and leaves w_cᵀμ_c as it is: the cosine is too small. ‖μ_c‖² is taken without τ_c.

    Args:
        weight: W, the classifier's weight, which does not depend on these samples.
        moments: Of the features.

    Returns:
        One value per class; NaN where ‖μ_c‖ is no more than its noise makes it, or a class has one sample.

    Raises:
        ValueError: The shapes do not fit, or there are fewer than two classes.

    Example:
        >>> from nc_callbacks import ClassStatistics
        >>> generator = torch.Generator().manual_seed(0)
        >>> means, targets = torch.eye(64)[:4] * 8, torch.arange(40) % 4
        >>> statistics = ClassStatistics(4)
        >>> statistics.update(means[targets] + torch.randn(40, 64, generator=generator), targets)
        >>> round(float(wm_cosine_corrected(means - means.mean(0), statistics.compute()).mean()), 2)
        1.0
    """
    weight, means, _ = same_shape(weight, moments.means)
    dtype = torch.promote_types(means.dtype, moments.traces.dtype)
    n, k = moments.counts.to(dtype), len(means)
    noise = _unbiased_traces(moments, n) / n
    rows, weight = deviations(means.to(dtype)), weight.to(dtype)
    squares = rows.square().sum(1) - (1 - 2 / k) * noise - noise.sum() / k**2
    lengths = torch.where(squares > 0, squares, torch.nan).sqrt()
    return (weight * rows).sum(1) / weight.norm(dim=1) / lengths


def _unbiased_traces(moments: ClassMoments, n: Tensor) -> Tensor:
    return moments.traces.to(n.dtype) * torch.where(n > 1, n / (n - 1), torch.nan)


def _squared_distances(gram: Tensor) -> Tensor:
    squares = gram.diagonal()
    return squares[:, None] + squares - 2 * gram


def _inverse(matrix: Tensor) -> Tensor:
    """Of a matrix that has to be positive; NaN where it is not."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if bool(failed):
        return torch.full_like(matrix, torch.nan)
    return torch.cholesky_inverse(factor)
