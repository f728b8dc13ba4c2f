"""Near-optimal representations (Seddik & Tamaazousti 2022): Assumptions A1 and A2, and Proposition 2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nc_callbacks.functional._common import as_matrix, class_labels, common_dtype, full_precision
from nc_callbacks.functional.rounding import Rounding, hermitian_inverse, least_variances
from nc_callbacks.statistics import ClassMoments, SoftmaxExpectations
from nc_callbacks.statistics.precision import wide_dtype


@dataclass(frozen=True)
class NearOptimality:
    """How far representations satisfy A1 (means orthogonal, of one norm) and A2 (covariances isotropic).

    In units of squared features; A1 and A2 hold where `mu2` and `sigma2` are 0 (Seddik & Tamaazousti 2022).

    Example:
        >>> from nc_callbacks import ClassStatistics
        >>> statistics = ClassStatistics(num_classes=2, covariance="none")
        >>> statistics.update(torch.eye(2), torch.tensor([0, 1]))
        >>> near_optimality(statistics.compute()).squared_norms.tolist()
        [1.0, 1.0]
    """

    mu1: Float[Tensor, ""]
    """Mean over c of ‖m_c‖², uncentred."""
    mu2: Float[Tensor, ""]
    """Mean over c ≠ c' of m_cᵀ m_c'."""
    sigma1: Float[Tensor, ""]
    """Mean over c of σ²_{1,c}, the mean diagonal entry of C_c."""
    sigma2: Float[Tensor, ""]
    """Mean over c of σ²_{2,c}, the mean off-diagonal entry of C_c."""
    squared_norms: Float[Tensor, " k"]
    """‖m_c‖² of each class."""
    mean_products: Float[Tensor, " k"]
    """Mean over c' ≠ c of m_cᵀ m_c', of each class."""
    variances: Float[Tensor, " k"]
    """σ²_{1,c} = tr C_c / p of each class."""
    covariances: Float[Tensor, " k"]
    """σ²_{2,c} = (1ᵀC_c 1 − tr C_c) / (p (p − 1)) of each class; 0 for p = 1."""

    @property
    def mu_ratio(self) -> Float[Tensor, ""]:
        """mu2 / mu1, near 0 under A1."""
        return self.mu2 / self.mu1

    @property
    def sigma_ratio(self) -> Float[Tensor, ""]:
        """sigma2 / sigma1, near 0 under A2."""
        return self.sigma2 / self.sigma1


@full_precision
def near_optimality(moments: ClassMoments) -> NearOptimality:
    """μ₁, μ₂, σ²₁ and σ²₂ with their values class by class (Seddik & Tamaazousti 2022, Assumption 2 and Fig. 1).

    Needs class means, traces and coordinate sums only: O(kp) memory, no p × p and no k × k matrix. A class whose
    variance is less than one unit in the last place of its features makes has none.

    Args:
        moments: Moments of the features (``covariance="none"`` will do). Classes without samples are left out.

    Raises:
        ValueError: Fewer than two classes have samples.

    Example:
        >>> from nc_callbacks import ClassStatistics
        >>> statistics = ClassStatistics(num_classes=2, covariance="none")
        >>> statistics.update(2 * torch.eye(2), torch.tensor([0, 1]))
        >>> near_optimality(statistics.compute()).mu1.item(), near_optimality(statistics.compute()).mu2.item()
        (4.0, 0.0)
    """
    moments = moments.observed()
    means = as_matrix("moments.means", moments.means)
    means = means.to(torch.promote_types(means.dtype, wide_dtype(means.device)))
    k, p = means.shape
    squared_norms = means.square().sum(1)
    mean_products = (means @ means.sum(0) - squared_norms) / (k - 1)
    none = moments.traces <= least_variances(means, moments.precision)
    variances = moments.traces.to(means.dtype).masked_fill(none, 0) / p
    covariances = (moments.coordinate_sums - moments.traces).to(means.dtype) / max(p * (p - 1), 1)
    covariances = covariances.masked_fill(none, 0) if p > 1 else torch.zeros_like(covariances)
    return NearOptimality(
        mu1=squared_norms.mean(),
        mu2=mean_products.mean(),
        sigma1=variances.mean(),
        sigma2=covariances.mean(),
        squared_norms=squared_norms,
        mean_products=mean_products,
        variances=variances,
        covariances=covariances,
    )


@full_precision
def a2_residual(moments: ClassMoments) -> Float[Tensor, ""]:
    """mean_c ‖C_c − (σ²_{1,c} I + σ²_{2,c}(11ᵀ − I))‖_F / ‖C_c‖_F: 0 where A2 holds exactly, at most 1.

    The two constants are the least-squares fit, so the squared residual is ‖C‖² minus what the fit explains. A class
    without spread (C_c = 0) has none to explain and counts 0.

    Args:
        moments: Moments with per-class covariances. Classes without samples are left out.

    Raises:
        ValueError: The moments have no per-class covariances.

    Example:
        >>> from nc_callbacks import ClassStatistics
        >>> statistics = ClassStatistics(num_classes=2, covariance="per_class")
        >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> statistics.update(torch.cat([x, 2 * x]), torch.tensor([0] * 4 + [1] * 4))
        >>> a2_residual(statistics.compute()).item()
        0.0
    """
    if moments.covariances is None:
        raise ValueError('a2_residual needs the covariance of each class: gather moments with covariance="per_class".')
    moments = moments.observed()
    assert moments.covariances is not None
    fit = near_optimality(moments)
    c = moments.covariances.to(fit.variances.dtype)
    p = c.shape[-1]
    ones, eye = c.new_ones(p, p), torch.eye(p, dtype=c.dtype, device=c.device)
    residuals = []
    for matrix, variance, covariance in zip(c, fit.variances, fit.covariances, strict=True):
        norm = matrix.norm()
        distance = (matrix - variance * eye - covariance * (ones - eye)).norm()
        residuals.append(torch.where(variance == 0, 0, distance / norm))
    return torch.stack(residuals).mean()


@full_precision
def softmax_expectations(logits: Float[Tensor, "n k"], targets: Int[Tensor, " n"]) -> SoftmaxExpectations:
    """E_j[p_ℓ] and E_j[p_ℓ p_q] of p = softmax(logits), over the samples of each class j.

    Args:
        logits: One row per sample.
        targets: Class indices in 0…k−1. The expectations over a class that does not occur are NaN.

    Raises:
        ValueError: The shapes do not fit, or a target is no class index in 0…k−1.

    Example:
        >>> softmax_expectations(torch.zeros(2, 2), torch.tensor([0, 1])).probabilities
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]])
    """
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(
            f"logits must be (n, k) and targets (n,), got {tuple(logits.shape)} and {tuple(targets.shape)}."
        )
    k = logits.shape[1]
    targets = class_labels(targets, k)
    p = logits.to(common_dtype(logits)).softmax(1)
    counts = torch.bincount(targets, minlength=k).to(p.dtype)
    sums = p.new_zeros(k, k).index_add(0, targets, p)
    products = p.new_zeros(k, k, k).index_add(0, targets, p[:, :, None] * p[:, None, :])
    return SoftmaxExpectations(sums / counts[:, None], products / counts[:, None, None])


@full_precision
def implicit_weights(
    weight: Float[Tensor, "k p"],
    moments: ClassMoments,
    features_or_expectations: tuple[Float[Tensor, "n p"], Int[Tensor, " n"]] | SoftmaxExpectations,
    variant: Literal["full", "published"] = "full",
    alpha: Float[Tensor, " k"] | None = None,
) -> Float[Tensor, "k p"]:
    """The weights that Proposition 2 implies, given the current ones (Seddik & Tamaazousti 2022, eq. 8).

    For Gaussian classes the gradient of the softmax loss vanishes where, for each class ℓ and by Stein's lemma,
    Σ_j α_j π_j (E_j[f_ℓ] m_j + C_j Σ_q E_j[∂f_ℓ/∂t_q] w_q) = 0, with f = p − y and ∂f_ℓ/∂t_q = p_ℓ (δ_{ℓq} − p_q).
    With A_ℓ = Σ_j α_j π_j E_j[p_ℓ (1 − p_ℓ)] C_j this is a fixed point of

    - ``"full"``: w_ℓ = −A_ℓ⁺ (Σ_j α_j π_j E_j[f_ℓ] m_j − Σ_j α_j π_j C_j Σ_{q≠ℓ} E_j[p_ℓ p_q] w_q);
    - ``"published"``: eq. 8, which drops the sum over q ≠ ℓ. As printed it also drops the minus sign that f = p − y
      needs (the proof of Proposition 3 has it, in γ_ℓ with −f'); it is kept here.

    Directions along which rounding of the features alone spreads the samples get no weight.

    Args:
        weight: W, the classifier's weight (no bias).
        moments: Moments with per-class covariances; every class must have samples.
        features_or_expectations: Features and their targets, or the expectations of the softmax outputs.
        variant: Which of the two.
        alpha: α_j of the generalised labels (eq. 4); by default 1.

    Returns:
        The implied W; where it equals `weight`, Proposition 2 holds.

    Raises:
        ValueError: The moments have no per-class covariances, a class has no samples, shapes do not fit, or there is
            no such variant.

    Example:
        >>> from nc_callbacks import ClassStatistics
        >>> x, y = torch.randn(500, 3), torch.arange(500) % 2
        >>> statistics = ClassStatistics(num_classes=2, covariance="per_class")
        >>> statistics.update(x, y)
        >>> implicit_weights(torch.zeros(2, 3), statistics.compute(), (x, y)).shape
        torch.Size([2, 3])
    """
    if variant not in ("full", "published"):
        raise ValueError(f'variant must be "full" or "published", got {variant!r}.')
    if moments.covariances is None:
        raise ValueError('Proposition 2 needs the covariance of each class: gather with covariance="per_class".')
    if not moments.present.all():
        raise ValueError("Every class must have samples; leave out the others with moments.observed().")
    if weight.shape != moments.means.shape:
        raise ValueError(f"weight must have shape {tuple(moments.means.shape)}, got {tuple(weight.shape)}.")
    k = len(weight)
    if alpha is not None and alpha.shape != (k,):
        raise ValueError(f"alpha must be ({k},), got {tuple(alpha.shape)}.")
    if not isinstance(features_or_expectations, SoftmaxExpectations):
        features, targets = features_or_expectations
        if features.ndim != 2 or features.shape[1] != weight.shape[1]:
            raise ValueError(f"features must be (n, {weight.shape[1]}), got {tuple(features.shape)}.")
        features = features.to(common_dtype(features, weight))
        features_or_expectations = softmax_expectations(features @ weight.to(features.dtype).T, targets)
    expectations = features_or_expectations
    if expectations.probabilities.shape != (k, k) or expectations.products.shape != (k, k, k):
        raise ValueError(
            f"The expectations must be of {k} classes, got probabilities {tuple(expectations.probabilities.shape)} and "
            f"products {tuple(expectations.products.shape)}."
        )
    dtype = common_dtype(weight, moments.means, expectations.products)
    w, means, covariances = weight.to(dtype), moments.means.to(dtype), moments.covariances.to(dtype)
    p, pp = expectations.probabilities.to(dtype), expectations.products.to(dtype)
    scale = moments.priors.to(dtype) * (1 if alpha is None else alpha.to(dtype))

    eye = torch.eye(k, dtype=dtype, device=w.device)
    others, coupling = p * (1 - eye), pp * (1 - eye)
    # p_ℓ − 1 and p_ℓ (1 − p_ℓ) as sums over the other classes: late in training the differences have no digits.
    f = others - torch.diag(others.sum(1))
    variances = coupling.sum(2)
    drive = (scale[:, None] * f).T @ means
    if variant == "full":
        drive = drive - torch.einsum("j,jab,jlb->la", scale, covariances, coupling @ w)
    factors = scale[:, None] * variances
    curvature = torch.einsum("jl,jab->lab", factors, covariances)
    if not (curvature.isfinite().all() and drive.isfinite().all()):
        return torch.full_like(drive, torch.nan)
    squares = moments.priors.to(dtype) @ (means.square() + covariances.diagonal(dim1=1, dim2=2))
    implied = []
    for matrix, factor, row in zip(curvature, factors.sum(0), drive, strict=True):
        rounding = Rounding(moments.precision, squares, matrix.diagonal() / factor)
        implied.append(-hermitian_inverse(matrix, rounding, factor) @ row)
    return torch.stack(implied)
