"""NC2, the geometry of class means or weight rows: how near they are to a simplex equiangular tight frame (ETF)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from nc_callbacks.functional._common import as_matrix, etf_distance, row_blocks


def nc2_equinorm(vectors: Float[Tensor, "k p"]) -> Float[Tensor, ""]:
    """std_c ‖μ_c‖ / mean_c ‖μ_c‖, with divisor k − 1; dimensionless, 0 for equal norms (Papyan et al. 2020).

    Args:
        vectors: Centred class means, or weight rows; used as they stand.

    Raises:
        ValueError: There are fewer than two classes.

    Example:
        >>> nc2_equinorm(torch.tensor([[3.0, 4.0], [0.0, 5.0]]))
        tensor(0.)
    """
    norms = as_matrix("vectors", vectors).norm(dim=1)
    return norms.std(correction=1) / norms.mean()


def nc2_equiangularity(vectors: Float[Tensor, "k p"], signed: bool = False) -> Float[Tensor, ""]:
    """Mean over c ≠ c' of |cos(μ_c, μ_c') + 1/(k−1)|; dimensionless, 0 for a simplex ETF (Papyan et al. 2020).

    Args:
        vectors: Centred class means, or weight rows; used as they stand.
        signed: Leave out the absolute value (Lindegaard 2021, Fig. 2): positive and negative deviations cancel.

    Raises:
        ValueError: There are fewer than two classes.

    Example:
        >>> nc2_equiangularity(torch.eye(3))
        tensor(0.5000)
    """
    vectors = as_matrix("vectors", vectors)
    k = len(vectors)
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    pairs = k * (k - 1)
    if signed:
        return (unit.sum(0).square().sum() - unit.square().sum()) / pairs + 1 / (k - 1)
    parts = []
    for rows in row_blocks(k, k, unit.dtype):
        deviations = (unit[rows] @ unit[rows.start :].T + 1 / (k - 1)).abs()
        parts.append(deviations.triu(1).sum())
    return 2 * torch.stack(parts).sum() / pairs


def nc2_etf(vectors: Float[Tensor, "k p"]) -> Float[Tensor, ""]:
    """‖ M Mᵀ/‖M Mᵀ‖_F − E ‖_F with E = (I − 11ᵀ/k)/√(k−1), in [0, 2); 0 for a simplex ETF (Zhu et al. 2021).

    Args:
        vectors: Centred class means, or weight rows; used as they stand.

    Raises:
        ValueError: There are fewer than two classes.

    Example:
        >>> simplex = torch.eye(3) - 1 / 3
        >>> nc2_etf(simplex) < 1e-6
        tensor(True)
    """
    vectors = as_matrix("vectors", vectors)
    return etf_distance(vectors, vectors)
