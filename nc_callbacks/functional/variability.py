"""NC1, within-class variability: how small the spread within classes is beside the spread between them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from nc_callbacks.functional._common import as_matrix, centred, common_dtype, is_finite, row_parts
from nc_callbacks.functional.pairs import checked_traces, mean_variance_ratio


def nc1(
    within: Float[Tensor, "p p"], means: Float[Tensor, "k p"], global_mean: Float[Tensor, " p"] | None = None
) -> Float[Tensor, ""]:
    """tr(Σ_W Σ_B⁺) / k, dimensionless, in [0, ∞); 0 at collapse (Papyan, Han & Donoho 2020).

    With the pseudo-inverse P = M⁺ of the centred means, Σ_B⁺ = k P Pᵀ, so the value is tr(Pᵀ Σ_W P): a thin SVD of
    the (k, p) matrix M with a relative cut-off at its rounding, no p × p matrix inverted, and a gradient that exists
    at a simplex ETF too, where all singular values are equal. With more classes than features the SVD is that of the
    triangle R of M = QR, for M enters by MᵀM = RᵀR alone.
    Han et al.'s notebook and Lindegaard's code leave out the division by k.

    Args:
        within: Σ_W, the pooled within-class covariance (divisor n).
        means: Uncentred class means.
        global_mean: Vector to centre at; by default the mean of the class means.

    Returns:
        The scalar; infinity where all means coincide (Σ_B = 0), NaN where Σ_W is 0 too or an entry is not finite.

    Raises:
        ValueError: The shapes do not fit, or there are fewer than two classes.

    Example:
        >>> nc1(torch.eye(2) / 100, torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        tensor(0.0050)
    """
    dtype = common_dtype(within, means)
    means = as_matrix("means", means, dtype)
    k, p = means.shape
    if within.shape != (p, p):
        raise ValueError(f"within must be ({p}, {p}) to go with means of shape ({k}, {p}), got {tuple(within.shape)}.")
    within = within.to(dtype)
    finite = is_finite(means) & is_finite(within)
    centred_means = centred(means, global_mean)
    if k > p and not centred_means.requires_grad:
        centred_means = _triangle(centred_means)
    # The SVD raises on NaN; a metric of NaN features is NaN.
    centred_means = torch.where(finite, centred_means, 0)
    inverse = torch.linalg.pinv(centred_means, rtol=max(k, p) * torch.finfo(dtype).eps)
    value = (inverse * (within @ inverse)).sum().clamp(min=0)
    # Where Σ_B = 0 the value is tr Σ_W / 0.
    largest = centred_means.abs().max()
    value = torch.where(largest > 0, value, within.trace() / largest)
    return torch.where(finite, value, torch.nan)


def _triangle(matrix: Float[Tensor, "k p"]) -> Float[Tensor, "p p"]:
    """R of the QR decomposition, in blocks of rows."""
    triangle = matrix[:0]
    for (rows,) in row_parts(matrix):
        triangle = torch.linalg.qr(torch.cat([triangle, rows]), mode="r").R
    return triangle


def nc1_quotient(
    within: Float[Tensor, "p p"] | Float[Tensor, ""],
    means: Float[Tensor, "k p"],
    global_mean: Float[Tensor, " p"] | None = None,
) -> Float[Tensor, ""]:
    """tr Σ_W / tr Σ_B, dimensionless, in [0, ∞); 0 at collapse (Tirer, Huang & Niles-Weed 2023).

    Args:
        within: Σ_W, or its trace alone.
        means: Uncentred class means.
        global_mean: Vector to centre at; by default the mean of the class means.

    Raises:
        ValueError: The shapes do not fit, or there are fewer than two classes.

    Example:
        >>> nc1_quotient(torch.eye(2) / 100, torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        tensor(0.0200)
    """
    dtype = common_dtype(within, means)
    means = centred(as_matrix("means", means, dtype), global_mean)
    p = means.shape[1]
    if within.shape not in ((p, p), ()):
        raise ValueError(f"within must be ({p}, {p}), or its trace alone, got shape {tuple(within.shape)}.")
    total = within.to(dtype).trace() if within.ndim == 2 else within.to(dtype)
    return total / (means.norm().square() / len(means))


def nc1_cdnv(traces: Float[Tensor, " k"], means: Float[Tensor, "k p"]) -> Float[Tensor, ""]:
    """Class-distance normalised variance: mean over c < c' of (v_c + v_c') / (2 ‖m_c − m_c'‖²) (Galanti et al. 2021).

    Dimensionless, in [0, ∞); 0 at collapse; infinity where two class means coincide.

    Args:
        traces: v_c = tr C_c, the within-class variances.
        means: Uncentred class means.

    Raises:
        ValueError: The shapes do not fit, or there are fewer than two classes.

    Example:
        >>> nc1_cdnv(torch.tensor([0.1, 0.3]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        tensor(0.0500)
    """
    dtype = common_dtype(traces, means)
    means = centred(as_matrix("means", means, dtype))
    return mean_variance_ratio(means, checked_traces(traces, means))
