"""The spectrum of a layer: how many directions its activations use."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from nc_callbacks.functional._common import common_dtype


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
