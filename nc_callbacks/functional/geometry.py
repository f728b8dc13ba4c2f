"""NC2, the geometry of class means or weight rows: how near they are to a simplex equiangular tight frame (ETF)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from nc_callbacks.functional._common import (
    as_matrix,
    common_dtype,
    directions,
    etf_distance,
    full_precision,
    row_parts,
    scaled,
)
from nc_callbacks.functional.pairs import log_distances, mean_angle_deviation
from nc_callbacks.statistics.precision import wide_dtype


@full_precision
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
    vectors = as_matrix("vectors", vectors)
    norms = scaled(vectors)[0].norm(dim=1)
    return (norms.std(correction=1) / norms.mean()).to(vectors.dtype)


@full_precision
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
    if not signed:
        return mean_angle_deviation(vectors)
    k = len(vectors)
    units = (directions(rows) for (rows,) in row_parts(vectors))
    total, squares = zip(*[(unit.sum(0), unit.square().sum()) for unit in units], strict=True)
    pairs = k * (k - 1)
    mean = (torch.stack(total).sum(0).square().sum() - torch.stack(squares).sum()) / pairs
    return (mean + 1 / (k - 1)).to(vectors.dtype)


@full_precision
def nc2_uniformity(vectors: Float[Tensor, "k p"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean and variance over c < c' of log(1 / ‖μ̂_c − μ̂_c'‖), μ̂ = μ/‖μ‖ (Liu et al. 2023; Wu & Papyan 2024).

    Dimensionless. For a simplex ETF the mean is −½ log(2k/(k−1)), its least value for k ≤ p + 1, and the variance 0.

    Args:
        vectors: Centred class means, or weight rows; used as they stand.

    Returns:
        Mean, and variance over the pairs (divisor: their number); infinity and NaN where two directions coincide.

    Raises:
        ValueError: There are fewer than two classes.

    Example:
        >>> nc2_uniformity(torch.tensor([[1.0, 0.0], [-3.0, 0.0]]))
        (tensor(-0.6931), tensor(0.))
    """
    return log_distances(as_matrix("vectors", vectors))


@full_precision
def nc5(means: Float[Tensor, "k p"], ood_mean: Float[Tensor, " p"]) -> Float[Tensor, ""]:
    """mean_c |cos(m_c, m_ood)|, in [0, 1]; 0 where out-of-distribution data is orthogonal (Ammar et al. 2024).

    Args:
        means: Uncentred class means.
        ood_mean: Feature mean of out-of-distribution data.

    Raises:
        ValueError: The shapes do not fit, or there are fewer than two classes.

    Example:
        >>> nc5(torch.eye(3)[:2], torch.tensor([0.0, 0.0, 5.0]))
        tensor(0.)
    """
    dtype = common_dtype(means, ood_mean)
    means, ood_mean = as_matrix("means", means, dtype), ood_mean.to(dtype)
    if ood_mean.shape != means.shape[1:]:
        raise ValueError(f"ood_mean must be ({means.shape[1]},) like a class mean, got {tuple(ood_mean.shape)}.")
    (direction,) = directions(ood_mean[None].to(wide_dtype(means.device)))
    return torch.cat([directions(rows) @ direction for (rows,) in row_parts(means)]).abs().mean().to(dtype)


@full_precision
def subspace_angles(one: Float[Tensor, "k p"], other: Float[Tensor, "m p"]) -> Float[Tensor, " r"]:
    """Principal angles between the spans of two sets of vectors in one space, in [0, π/2], smallest first.

    For centred class means of two layers of one width (a residual stream): how far the second layer turns the space
    that the classes span (Björck & Golub 1973).

    Args:
        one: Centred class means of a layer; used as they stand.
        other: Of another layer, of the same width.

    Returns:
        As many angles as the smaller span has dimensions, in radians.

    Raises:
        ValueError: The widths differ, or there are fewer than two vectors.

    Example:
        >>> subspace_angles(torch.eye(4)[:2], torch.eye(4)[1:3]).rad2deg().round()
        tensor([ 0., 90.])
    """
    dtype = common_dtype(one, other)
    one, other = as_matrix("one", one), as_matrix("other", other)
    if one.shape[1] != other.shape[1]:
        raise ValueError(
            f"one and other must have as many columns, got {one.shape[1]} and {other.shape[1]}: spans in spaces of "
            "different widths have no angles."
        )
    first, second = (_orthonormal(rows) for rows in (one, other))
    if first.shape[1] > second.shape[1]:
        first, second = second, first
    inner = first.T @ second
    # Of small angles the cosine has no digits: those have a sine (Björck & Golub).
    cosines = torch.linalg.svdvals(inner).clamp(max=1)
    sines = torch.linalg.svdvals(first - second @ inner.T).clamp(max=1).flip(0)
    return torch.where(cosines.square() < 0.5, cosines.arccos(), sines.arcsin()).to(dtype)


def _orthonormal(rows: Float[Tensor, "k p"]) -> Float[Tensor, "p r"]:
    wide, _ = scaled(rows)
    _, singular, v = torch.linalg.svd(wide, full_matrices=False)
    return v[singular > max(rows.shape) * torch.finfo(rows.dtype).eps * singular[0]].T


@full_precision
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
