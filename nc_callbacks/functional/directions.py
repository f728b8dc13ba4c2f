"""Which directions the class means have: those of M that rounding cannot produce."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nc_callbacks.functional._common import product, row_parts
from nc_callbacks.functional.rounding import STEPS, Rounding, arithmetic, deviations
from nc_callbacks.statistics.products import add_products, mirror

DIGITS = 3
"""Digits of NC1 below which a warning is given."""

_LEAST_SQUARE = 1e-6
"""Least squared singular value, of the largest, down to which MᵀM gives it to nine digits."""

_MOST_SAMPLES = 1e9
"""Samples of a class beyond any: class means that lie nearer than so many leave them do so by construction."""


@dataclass(frozen=True)
class Directions:
    """Orthonormal directions of feature space, as columns, along which the class means differ or seem to."""

    kept: Float[Tensor, "p r"]
    """Right singular vectors of M that exist."""
    singular: Float[Tensor, " r"]
    """Their singular values."""
    dropped: Float[Tensor, "p s"]
    """Those that rounding has made."""
    doubtful: int
    """How many of these may exist all the same."""
    digits: int
    """Digits of NC1 that are known, at most `DIGITS`."""
    spread: Float[Tensor, "p r"]
    """Σ_W times `kept`."""

    def inverse(self, centred_means: Float[Tensor, "k p"]) -> Float[Tensor, "p k"]:
        """M⁺ without the dropped directions, differentiable in M."""
        remains = centred_means - (centred_means @ self.dropped) @ self.dropped.T
        # A tensor: half the least singular value lies between those that exist and the rounding of this algebra.
        return torch.linalg.pinv(remains, atol=self.singular.amin() / 2, rtol=torch.zeros_like(self.singular[0]))

    def warning(self, precision: float) -> str:
        """Warning where few digits are known."""
        left_out = f" {self.doubtful} more are no larger than rounding and are left out." if self.doubtful else ""
        if not len(self.singular):
            return (
                "nc1 is not known here: all class means are the same up to what rounding of the features makes "
                f"(precision {precision:.2g}). Features in a wider type, or with less of a common offset, may differ."
            )
        return (
            f"nc1 is known to {self.digits or 'no'} digit{'' if self.digits == 1 else 's'} here: along some of the "
            f"{len(self.singular)} directions of the class means, the spread between or within classes is near what "
            f"rounding of the features makes (precision {precision:.2g}).{left_out} Features in a wider type, or with "
            "less of a common offset, have more."
        )


def directions_of(
    means: Float[Tensor, "k p"],
    within: Float[Tensor, "p p"],
    precision: float,
    centre: Float[Tensor, " p"] | None = None,
    centre_precision: float = 0.0,
) -> Directions:
    """The directions of class means around their mean, or around `centre`, a vector with a rounding of its own.

    A direction v with the singular value σ of M is rounding where σ/√k, the root mean square of the class means along
    it, is no more than rounding moves class means; and, for rounding that is the same in all entries, where neither
    the class means nor the samples (vᵀΣ_W v) are moved along it by more than rounding moves a sample.
    """
    k, p = means.shape
    variances = within.diagonal().to(means.dtype).clamp(min=0)
    squares = torch.stack([rows.square().sum(0) for (rows,) in row_parts(means)]).sum(0) / k + variances
    rounding = Rounding(precision, squares, variances)
    matrix = deviations(means)
    found = _by_gram(matrix) if k > p and centre is None else None
    if found is None:
        if k > p:
            matrix = _triangle(matrix)
        # k rows that add up to 0 have k − 1 directions.
        count = min(k - 1, p)
        _, singular, v = torch.linalg.svd(matrix, full_matrices=False)
        found = singular[:count], v[:count].T
    singular, v = found
    # What the singular values themselves are rounded to: nothing is there, as where a unit is dead.
    own = max(k, p) * torch.finfo(singular.dtype).eps * singular.amax()
    of_within = product(within, v)
    between, spread = singular / k**0.5, (of_within * v).sum(0)
    of_variance = rounding.of_variance(v)
    separate = between <= rounding.of_means(v, k)
    common = (between <= rounding.of_features(v)) & (spread <= of_variance)
    rounded = (singular <= own) | separate | common
    # Samples spread there by more than their averages hide, or class means by more than rounding makes as a rule.
    spreading = (spread > of_variance) & (spread < _MOST_SAMPLES * between.square())
    doubtful = rounded & (singular > own) & (spreading | ~separate)
    kept, dropped, singular = v[:, ~rounded], v[:, rounded & (singular > own)], singular[~rounded]
    of_kept = of_within[:, ~rounded]
    if centre is not None:
        shift = means.mean(0) - centre
        bound = STEPS * max(arithmetic(precision), centre_precision) * squares.sum().sqrt()
        outside = shift - kept @ (shift @ kept)
        length = outside.norm()
        if length > bound:
            kept = torch.cat([kept, (outside / length)[:, None]], 1)
            of_kept = product(within, kept)
        elif length > 0:
            dropped = torch.cat([dropped, (outside / length)[:, None]], 1)
        # Mᵀ M around another centre: that around the mean, and k times the shift's product with itself.
        _, singular, turn = torch.linalg.svd(torch.cat([matrix, k**0.5 * shift[None]]) @ kept, full_matrices=False)
        kept, of_kept = kept @ turn.T, of_kept @ turn.T
    doubts = int(doubtful.sum())
    if not len(singular):
        doubts = max(doubts, dropped.shape[1])
    digits = 0 if doubts else _digits(kept, singular, of_kept.T, within, rounding)
    return Directions(kept, singular, dropped, doubts, digits, of_kept)


def _digits(kept: Tensor, singular: Tensor, spread: Tensor, within: Tensor, rounding: Rounding) -> int:
    """Digits of tr(Pᵀ Σ_W P) that are left by rounding of the class means, to first order, and of Σ_W."""
    inner = spread @ kept
    value = (inner.diagonal() / singular.square()).sum()
    # The derivative in M, turned by its left singular vectors.
    slope = (spread - inner @ kept.T) / singular[:, None] ** 3 - (inner / singular[:, None] / singular**2) @ kept.T
    noise = (rounding.precision + 2 * arithmetic(rounding.precision)) * rounding.squares.sqrt()
    of_means = 2 * (slope * noise).norm()
    of_entries = (rounding.precision / 2) ** 2 * rounding.squares + arithmetic(rounding.precision) * rounding.variances
    of_within = (kept.square() / singular.square()).sum(1) @ of_entries
    error = float(of_means + of_within)
    if error <= 10**-DIGITS * float(value) or not within.any():
        return DIGITS
    return max(0, math.floor(-math.log10(error / float(value)))) if value > 0 else 0


def _by_gram(matrix: Float[Tensor, "k p"]) -> tuple[Float[Tensor, " p"], Float[Tensor, "p p"]] | None:
    """Singular values and right singular vectors from MᵀM, where its squares cost no digits that count; else None."""
    gram = matrix.new_zeros(matrix.shape[1], matrix.shape[1])
    for (rows,) in row_parts(matrix):
        add_products(gram, rows)
    gram = mirror(gram)
    values, vectors = torch.linalg.eigh(gram)
    if not values[0] > _LEAST_SQUARE * values[-1]:
        return None
    return values.flip(0).sqrt(), vectors.flip(1)


def _triangle(matrix: Float[Tensor, "k p"]) -> Float[Tensor, "p p"]:
    """R of the QR decomposition, in blocks of rows."""
    triangle = matrix[:0]
    for (rows,) in row_parts(matrix):
        triangle = torch.linalg.qr(torch.cat([triangle, rows]), mode="r").R
    return triangle
