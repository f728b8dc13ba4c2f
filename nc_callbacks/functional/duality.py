"""NC3, self-duality: how far the rows of the classifier's weight line up with the centred class means."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from nc_callbacks.functional._common import (
    as_matrix,
    directions,
    etf_distance,
    full_precision,
    row_parts,
    same_shape,
    scaled,
    unit_parts,
)
from nc_callbacks.functional.rounding import centred


@full_precision
def nc3(
    weight: Float[Tensor, "k p"],
    means: Float[Tensor, "k p"],
    global_mean: Float[Tensor, " p"] | None = None,
    precision: float | None = None,
) -> Float[Tensor, ""]:
    """‖ W/‖W‖_F − M/‖M‖_F ‖_F², dimensionless, in [0, 4]; 0 at self-duality (Papyan et al. 2020).

    Args:
        weight: W, the classifier's weight.
        means: Uncentred class means.
        global_mean: Vector to centre at; by default the mean of the class means.
        precision: ε of the features (`ClassMoments.precision`); by default that of the coarsest of means and centre.
            A class mean that is no further from the centre than its sums are rounded is at the centre.

    Raises:
        ValueError: The shapes differ, or there are fewer than two classes.

    Example:
        >>> means = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
        >>> nc3(torch.tensor([[5.0, 0.0], [-5.0, 0.0]]), means)
        tensor(0.)
    """
    weight, means, dtype = same_shape(weight, means)
    means = centred(means, global_mean, precision)
    squares = torch.stack([torch.stack([w.square().sum(), m.square().sum()]) for w, m in unit_parts(weight, means)])
    w_norm, m_norm = squares.sum(0).sqrt()
    gaps = [(w / w_norm - m / m_norm).square().sum() for w, m in unit_parts(weight, means)]
    return torch.stack(gaps).sum().to(dtype)


@full_precision
def nc3_etf(
    weight: Float[Tensor, "k p"],
    means: Float[Tensor, "k p"],
    global_mean: Float[Tensor, " p"] | None = None,
    precision: float | None = None,
) -> Float[Tensor, ""]:
    """‖ W Mᵀ/‖W Mᵀ‖_F − E ‖_F with E = (I − 11ᵀ/k)/√(k−1), in [0, 2] (Zhu et al. 2021).

    0 where W and M are the same simplex ETF up to scale.

    Args:
        weight: W, the classifier's weight.
        means: Uncentred class means.
        global_mean: Vector to centre at; by default the mean of the class means.
        precision: ε of the features (`ClassMoments.precision`); by default that of the coarsest of means and centre.
            A class mean that is no further from the centre than its sums are rounded is at the centre.

    Raises:
        ValueError: The shapes differ, or there are fewer than two classes.

    Example:
        >>> nc3_etf(torch.eye(3), torch.eye(3)) < 1e-6
        tensor(True)
    """
    weight, means, dtype = same_shape(weight, means)
    return etf_distance(weight, centred(means, global_mean, precision)).to(dtype)


@full_precision
def wm_cosine(
    weight: Float[Tensor, "k p"],
    means: Float[Tensor, "k p"],
    global_mean: Float[Tensor, " p"] | None = None,
    precision: float | None = None,
) -> Float[Tensor, " k"]:
    """Cos(w_c, μ_c) for each class, in [−1, 1] (Seddik & Tamaazousti 2022, Corollary 2 and Fig. 2).

    Args:
        weight: W, the classifier's weight.
        means: Uncentred class means.
        global_mean: Vector to centre at; by default the mean of the class means.
        precision: ε of the features (`ClassMoments.precision`); by default that of the coarsest of means and centre.
            A class mean that is no further from the centre than its sums are rounded is at the centre.

    Raises:
        ValueError: The shapes differ, or there are fewer than two classes.

    Example:
        >>> wm_cosine(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        tensor([1., 0.])
    """
    weight, means, dtype = same_shape(weight, means)
    means = centred(means, global_mean, precision)
    # Each row by its own size: a class far smaller than the others has a direction too.
    cosines = [(directions(w) * directions(m)).sum(1) for w, m in row_parts(weight, means)]
    return torch.cat(cosines).clamp(-1, 1).to(dtype)


@full_precision
def nc3_uniform_duality(
    weight: Float[Tensor, "k p"],
    means: Float[Tensor, "k p"],
    global_mean: Float[Tensor, " p"] | None = None,
    precision: float | None = None,
) -> Float[Tensor, ""]:
    """Variance over c of cos(w_c, μ_c), divisor k; dimensionless, in [0, 1] (Wu & Papyan 2024).

    Args:
        weight: W, the classifier's weight.
        means: Uncentred class means.
        global_mean: Vector to centre at; by default the mean of the class means.
        precision: ε of the features (`ClassMoments.precision`); by default that of the coarsest of means and centre.
            A class mean that is no further from the centre than its sums are rounded is at the centre.

    Raises:
        ValueError: The shapes differ, or there are fewer than two classes.

    Example:
        >>> nc3_uniform_duality(torch.eye(3), torch.eye(3)) < 1e-12
        tensor(True)
    """
    return wm_cosine(weight, means, global_mean, precision).var(correction=0)


@full_precision
def nc3_bias(
    weight: Float[Tensor, "k p"],
    means: Float[Tensor, "k p"],
    bias: Float[Tensor, " k"] | None = None,
    global_mean: Float[Tensor, " p"] | None = None,
    precision: float | None = None,
) -> Float[Tensor, ""]:
    """‖W m + b‖ / mean_c ‖W μ_c‖, dimensionless, in [0, ∞); 0 where the bias undoes the global mean m.

    Zhu et al.'s (2021) code logs the numerator. Up to one number for all logits, which changes no decision, is not
    taken out.

    Args:
        weight: W, the classifier's weight.
        means: Uncentred class means.
        bias: b; by default 0.
        global_mean: m, by default the mean of the class means.
        precision: ε of the features (`ClassMoments.precision`); by default that of the coarsest of means and centre.
            A class mean that is no further from the centre than its sums are rounded is at the centre.

    Raises:
        ValueError: The shapes differ, or there are fewer than two classes.

    Example:
        >>> means = torch.tensor([[3.0, 0.0], [1.0, 0.0]])
        >>> nc3_bias(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), means, torch.tensor([-2.0, 2.0]))
        tensor(0.)
    """
    weight, means, dtype = same_shape(weight, means)
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be ({len(weight)},), one for each row of weight, got {tuple(bias.shape)}.")
    centre = means.mean(0) if global_mean is None else global_mean
    around = centred(means, global_mean, precision)
    weight = weight.to(around.dtype)
    logits = weight @ centre.to(around.dtype)
    if bias is not None:
        logits = logits + bias.to(around.dtype)
    if len(weight) > weight.shape[1]:
        # ‖W μ‖ = ‖R μ‖ with the triangle R of W = QR: no k × k matrix.
        weight = torch.linalg.qr(weight, mode="r").R
    lengths = [(rows @ weight.T).norm(dim=1) for (rows,) in row_parts(around)]
    return (logits.norm() / torch.cat(lengths).mean()).to(dtype)


@full_precision
def centred_mean_weight(
    means: Float[Tensor, "k p"],
    normalize: Literal["spectral", "frobenius", "none"] = "spectral",
    precision: float | None = None,
) -> Float[Tensor, "k p"]:
    """M̄, the centred class means as a classifier's weight (Seddik & Tamaazousti 2022, «Similarity»).

    ``"spectral"`` divides M by its largest singular value (the paper), ``"frobenius"`` by ‖M‖_F, ``"none"`` by
    nothing. The predictions are the same; the scale of the logits is not.

    Args:
        means: Uncentred class means.
        normalize: The norm to divide by.
        precision: ε of the features (`ClassMoments.precision`); by default that of the means' dtype. A class mean that
            is no further from the centre than its sums are rounded is at the centre.

    Raises:
        ValueError: `normalize` is none of the three, or there are fewer than two classes.

    Example:
        >>> centred_mean_weight(torch.tensor([[3.0, 0.0], [1.0, 0.0]]), normalize="none")
        tensor([[ 1.,  0.],
                [-1.,  0.]])
    """
    if normalize not in ("spectral", "frobenius", "none"):
        raise ValueError(f'normalize must be "spectral", "frobenius" or "none", got {normalize!r}.')
    means = as_matrix("means", means)
    weight = centred(means, precision=precision)
    if normalize == "none":
        return weight.to(means.dtype)
    weight, _ = scaled(weight)
    if normalize == "frobenius":
        return (weight / weight.norm()).to(means.dtype)
    finite = weight.isfinite().all()
    # The SVD raises on NaN; the result is NaN then.
    largest = torch.linalg.matrix_norm(torch.where(finite, weight, 0), ord=2)
    return (weight / torch.where(finite, largest, torch.nan)).to(means.dtype)
