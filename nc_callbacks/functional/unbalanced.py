"""Geometry of unbalanced training: the ideal that class sizes set, and rows of rare classes that fall together."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nc_callbacks.functional._common import as_matrix, directions, full_precision, scaled


@full_precision
def minority_collapse(weight: Float[Tensor, "k p"], counts: Int[Tensor, " k"]) -> Float[Tensor, ""]:
    """Mean cosine of the weight rows of rare classes, in [−1, 1]; 1 where they fall together (Fang et al. 2021).

    Rare are classes with less than half the median number of samples.

    Args:
        weight: W, the classifier's weight.
        counts: n_c, samples of each class.

    Returns:
        The scalar; NaN where fewer than two classes are rare.

    Raises:
        ValueError: The shapes do not fit.

    Example:
        >>> weight = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [-1.0, 1.0], [0.0, 1.0], [0.0, 2.0]])
        >>> minority_collapse(weight, torch.tensor([100, 100, 100, 5, 5]))
        tensor(1.)
    """
    weight = as_matrix("weight", weight)
    rows = weight[_checked_counts(counts, weight) < counts.float().quantile(0.5) / 2]
    if len(rows) < 2:
        return weight.new_tensor(torch.nan)
    unit = directions(rows.to(torch.promote_types(rows.dtype, scaled(rows)[0].dtype)))
    r = len(unit)
    # The sum over all pairs from the sum of the rows: no r × r matrix.
    return ((unit.sum(0).square().sum() - unit.square().sum()) / (r * (r - 1))).clamp(-1, 1).to(weight.dtype)


@full_precision
def nc2_seli(
    weight: Float[Tensor, "k p"], centred_means: Float[Tensor, "k p"], counts: Int[Tensor, " k"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Distances of W and M to the simplex-encoded-labels interpolation (Thrampoulidis et al. 2022), in [0, 2].

    The minimiser on unbalanced data has logits Z with Z_{ci} = 1{c = y_i} − 1/k. With Z = V Λ Uᵀ its Gram matrices are
    W Wᵀ ∝ V Λ Vᵀ and Hᵀ H ∝ U Λ Uᵀ. Z Zᵀ = P N P with P = I − 11ᵀ/k and N = diag(n_c), so, class by class,

        W Wᵀ ∝ S,   M Mᵀ ∝ S⁺,   S = (P N P)^½.

    The distances are ‖W Wᵀ/‖W Wᵀ‖_F − S/‖S‖_F‖_F and ‖M Mᵀ/‖M Mᵀ‖_F − S⁺/‖S⁺‖_F‖_F: those of `nc2_etf` where all
    classes have as many samples, and 0 at the ideal of unbalanced classes, where `nc2_etf` is not.

    Args:
        weight: W, the classifier's weight.
        centred_means: M, whose Gram matrix is compared.
        counts: n_c, samples of each class, none of them 0.

    Returns:
        Of the weights, and of the class means.

    Raises:
        ValueError: The shapes do not fit, or a class has no sample.

    Example:
        >>> simplex = torch.eye(3) - 1 / 3
        >>> weights, means = nc2_seli(simplex, simplex, torch.tensor([5, 5, 5]))
        >>> bool(weights < 1e-6), bool(means < 1e-6)
        (True, True)
    """
    weight, centred_means = as_matrix("weight", weight), as_matrix("centred_means", centred_means)
    n = _checked_counts(counts, weight).to(scaled(weight)[0].dtype)
    if len(centred_means) != len(weight) or bool((n == 0).any()):
        raise ValueError(
            f"weight and centred_means must have a row for each of the same classes, all with samples, got "
            f"{len(weight)} and {len(centred_means)} rows and a least count of {int(n.min())}."
        )
    k = len(n)
    # P N P on the complement of 1, where it has an inverse.
    basis = torch.linalg.qr(torch.cat([torch.ones(1, k), torch.eye(k)[1:]]).to(n).T).Q[:, 1:]
    values, vectors = torch.linalg.eigh(basis.T @ (n[:, None] * basis))
    vectors = basis @ vectors
    ideals = (vectors * values.sqrt()) @ vectors.T, (vectors / values.sqrt()) @ vectors.T
    found = (_distance(rows, ideal) for rows, ideal in zip((weight, centred_means), ideals, strict=True))
    of_weight, of_means = (distance.to(weight.dtype) for distance in found)
    return of_weight, of_means


def _distance(rows: Tensor, ideal: Tensor) -> Tensor:
    rows, _ = scaled(rows)
    gram = rows @ rows.T
    return (gram / gram.norm() - ideal / ideal.norm()).norm()


def _checked_counts(counts: Tensor, weight: Tensor) -> Tensor:
    if counts.shape != weight.shape[:1]:
        raise ValueError(f"counts must be ({len(weight)},), one for each row, got {tuple(counts.shape)}.")
    return counts
