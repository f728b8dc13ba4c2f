"""The spectrum of a layer: how many directions its activations use."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from nc_callbacks.functional._common import common_dtype
from nc_callbacks.functional.rounding import STEPS, arithmetic, checked_precision

_FIRST_OF_DECAY = 10
_FEW = 50
"""The decay is fitted from the 11th direction on, over all where there are fewer than 50."""


def eigenvalues(second_moment: Float[Tensor, "p p"]) -> Float[Tensor, " p"]:
    """Eigenvalues of a second-moment matrix, largest first, none below 0.

    The singular values of the (n, p) activation matrix are √(n λ_j).

    Args:
        second_moment: (1/n) Σ_i x_i x_iᵀ, or a covariance.

    Raises:
        ValueError: The matrix is not square.

    Example:
        >>> eigenvalues(torch.diag(torch.tensor([1.0, 4.0])))
        tensor([4., 1.])
    """
    if second_moment.ndim != 2 or second_moment.shape[0] != second_moment.shape[1]:
        raise ValueError(f"second_moment must be a square matrix (p, p), got shape {tuple(second_moment.shape)}.")
    matrix = second_moment.to(common_dtype(second_moment))
    finite = matrix.isfinite().all()
    values = torch.linalg.eigvalsh(torch.where(finite, matrix, 0)).flip(0).clamp(min=0)
    return torch.where(finite, values, torch.nan)


def present_eigenvalues(
    second_moment: Float[Tensor, "p p"], samples: int | None = None, precision: float | None = None
) -> Float[Tensor, " p"]:
    """Eigenvalues, largest first, 0 where no direction is: beyond `samples`, and where rounding alone would make one.

    Square roots and logarithms of eigenvalues need this: among 512 features in float32, rounding of the sums makes
    directions of 10⁻³ of the largest singular value.

    Args:
        second_moment: (1/n) Σ_i x_i x_iᵀ, or a covariance.
        samples: n, of which there are no more directions; by default as many as features.
        precision: ε of the features (`ClassMoments.precision`); by default that of the dtype given.

    Raises:
        ValueError: The matrix is not square.

    Example:
        >>> present_eigenvalues(torch.diag(torch.tensor([1.0, 4.0, 1e-9])))
        tensor([4., 1., 0.])
    """
    precision = checked_precision(precision, second_moment)
    return present_of(eigenvalues(second_moment), second_moment.diagonal(), samples, precision)


def present_of(
    values: Float[Tensor, " p"], diagonal: Float[Tensor, " p"], samples: int | None, precision: float
) -> Float[Tensor, " p"]:
    """Eigenvalues of a second moment with this diagonal, 0 where no direction is."""
    squares = diagonal.to(values.dtype)
    # As `Rounding.of_variance`, at its largest over all directions.
    features = precision * squares.amax().sqrt() + STEPS * arithmetic(precision) * squares.sum().sqrt()
    floor = features.square() + arithmetic(precision) * len(values) ** 0.5 * squares.amax()
    present = torch.where(values > floor, values, 0).where(values.isfinite(), values)
    return present if samples is None else torch.cat([present[:samples], torch.zeros_like(present[samples:])])


def explained_variance(second_moment: Float[Tensor, "p p"]) -> Float[Tensor, " p"]:
    """λ_j / Σ λ, largest first: shares in [0, 1] that add up to 1 (Lindegaard 2021, Fig. 3); NaN for a zero matrix.

    Args:
        second_moment: (1/n) Σ_i x_i x_iᵀ, or a covariance.

    Raises:
        ValueError: The matrix is not square.

    Example:
        >>> explained_variance(torch.diag(torch.tensor([1.0, 3.0])))
        tensor([0.7500, 0.2500])
    """
    values = eigenvalues(second_moment)
    return values / values.sum()


def effective_rank(second_moment: Float[Tensor, "p p"]) -> Float[Tensor, ""]:
    """exp(−Σ q_j log q_j) with q = λ/Σλ, in [1, p] (Roy & Vetterli 2007); k − 1 for centred features at collapse.

    Args:
        second_moment: (1/n) Σ_i x_i x_iᵀ, or a covariance.

    Raises:
        ValueError: The matrix is not square.

    Example:
        >>> effective_rank(torch.eye(3))
        tensor(3.)
    """
    return entropy_rank(explained_variance(second_moment))


def entropy_rank(shares: Float[Tensor, " p"]) -> Float[Tensor, ""]:
    """exp(−Σ q_j log q_j) of shares q that add up to 1, with 0 log 0 = 0.

    Args:
        shares: What `explained_variance` gives.

    Example:
        >>> entropy_rank(torch.tensor([0.5, 0.5, 0.0]))
        tensor(2.)
    """
    return torch.special.entr(shares).sum().exp()


def rankme(
    second_moment: Float[Tensor, "p p"], samples: int | None = None, precision: float | None = None
) -> Float[Tensor, ""]:
    """exp(−Σ q_j log q_j) with q = σ/Σσ, σ the singular values of the activations, in [1, p] (Garrido et al. 2023).

    Roy & Vetterli's (2007) own effective rank of the (n, p) activation matrix: σ_j = √(n λ_j), where `effective_rank`
    has λ. Directions that rounding alone would make are absent (see `present_eigenvalues`).

    Args:
        second_moment: (1/n) Σ_i x_i x_iᵀ, or a covariance.
        samples: n, of which there are no more directions; by default as many as features.
        precision: ε of the features (`ClassMoments.precision`); by default that of the dtype given.

    Raises:
        ValueError: The matrix is not square.

    Example:
        >>> rankme(torch.diag(torch.tensor([9.0, 9.0, 0.0])))
        tensor(2.)
    """
    return rankme_of(present_eigenvalues(second_moment, samples, precision))


def rankme_of(present: Float[Tensor, " p"]) -> Float[Tensor, ""]:
    """RankMe of eigenvalues, those of absent directions being 0."""
    singular = present.sqrt()
    return entropy_rank(singular / singular.sum())


def stable_rank(second_moment: Float[Tensor, "p p"]) -> Float[Tensor, ""]:
    """Σ λ / λ_1, in [1, p]: the squared Frobenius norm of the activations over their squared spectral norm.

    Args:
        second_moment: (1/n) Σ_i x_i x_iᵀ, or a covariance; MᵀM gives the stable rank of any matrix M.

    Raises:
        ValueError: The matrix is not square.

    Example:
        >>> stable_rank(torch.diag(torch.tensor([4.0, 2.0, 2.0])))
        tensor(2.)
    """
    values = eigenvalues(second_moment)
    return values.sum() / values[0]


def spectrum_decay(
    second_moment: Float[Tensor, "p p"], samples: int | None = None, precision: float | None = None
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """α of λ_j ∝ j^(−α), and R² of the fit: how fast the spectrum falls (Agrawal et al. 2022, α-ReQ).

    Least squares of log λ_j on log j, over the directions from the 11th on; over all where min(n, p) is below 50.
    Directions that rounding alone would make take no part (see `present_eigenvalues`).

    Args:
        second_moment: (1/n) Σ_i x_i x_iᵀ, or a covariance.
        samples: n, of which there are no more directions; by default as many as features.
        precision: ε of the features (`ClassMoments.precision`); by default that of the dtype given.

    Returns:
        α, dimensionless, at least 0, and R² in [0, 1]; NaN where fewer than three directions are left, R² also where
        they are all alike.

    Raises:
        ValueError: The matrix is not square.

    Example:
        >>> alpha, fit = spectrum_decay(torch.diag(1 / torch.arange(1.0, 21) ** 2))
        >>> round(float(alpha), 4), round(float(fit), 4)
        (2.0, 1.0)
    """
    return decay_of(present_eigenvalues(second_moment, samples, precision), samples)


def decay_of(present: Float[Tensor, " p"], samples: int | None) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """α and R² of eigenvalues, largest first, those of absent directions being 0."""
    directions = len(present) if samples is None else min(samples, len(present))
    first = 0 if directions < _FEW else _FIRST_OF_DECAY
    values = present[first:]
    values = values[values > 0]
    nan = torch.full_like(present[0], torch.nan)
    if len(values) < 3:
        return nan, nan
    x = torch.arange(first + 1, first + 1 + len(values), device=values.device).to(values.dtype).log()
    y = values.log()
    x, y = x - x.mean(), y - y.mean()
    alpha = -(x @ y) / (x @ x)
    total = y @ y
    fit = 1 - (y + alpha * x).square().sum() / total
    return alpha, torch.where(total > len(y) * torch.finfo(y.dtype).eps ** 2, fit, nan)
