"""Vectors near the class means, to take sums around."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nc_callbacks.statistics.sums import total

_ROUNDS = 4
"""Rounds of reweighting: an outlier in one of three rows of a class is out by 10⁻⁴ of its distance after them."""

_FLOOR = 1e-12
"""Squared distance, of the largest, below which rows weigh the same."""

_NEARER = 4
"""How many times nearer (squared) a row is to a shift to speak for it."""

_MORE = 1.75
"""How much larger distances may become where a shift moves to the later rows."""

_MANY = 32
"""Rows near one another that are no outliers, and for which it takes less to move the shift than to add with care."""

_DRIFT = 1 / 16
"""Squared distance of a class mean from its shift, of the variance, above which the shift is moved there."""

_LEAST_COUNT = 16
"""Samples that a class mean is taken of before its shift is moved there."""


def add_centres(
    shift: Float[Tensor, "k p"],
    x: Float[Tensor, "n p"],
    y: Int[Tensor, " n"],
    counted: Bool[Tensor, " n"],
    rounds: int = _ROUNDS,
) -> None:
    """Add to the rows of `shift` of some classes, which are zero or near, what leads to the centres of rows `counted`.

    The first step leads to the mean; each further round weighs rows by their inverse squared distance from the last
    centre, so that few rows far from the others lose their weight. The host does not wait for the numbers.
    """
    # A number that is not finite when squared must not hide in the shift: its sample is counted, the others not.
    counted = counted & torch.linalg.vector_norm(x, dim=1).square().isfinite()
    weights = counted.to(x.dtype)
    for step in range(1 + rounds):
        gaps = torch.where(counted[:, None], x - shift.index_select(0, y), 0)
        if step:
            squares = torch.linalg.vector_norm(gaps, dim=1).square()
            largest = squares.amax().clamp(min=torch.finfo(x.dtype).tiny)
            weights = torch.where(counted, 1 / (squares / largest + _FLOOR), 0)
        totals = weights.new_zeros(len(shift)).index_add_(0, y, weights).index_select(0, y)
        shift.index_add_(0, y, gaps.mul_((weights / totals.clamp(min=torch.finfo(x.dtype).tiny))[:, None]))


def centres(x: Float[Tensor, "n p"], places: Int[Tensor, " n"], m: int) -> Float[Tensor, "m p"]:
    """Where most of the rows of each of m classes are; row i is of class `places[i]`."""
    found = x.new_zeros(m, x.shape[1])
    add_centres(found, x, places, torch.ones_like(places, dtype=torch.bool))
    return found


def shall_move(
    state: Mapping[str, Tensor],
    classes: Int[Tensor, " m"],
    places: Int[Tensor, " n"],
    gap: Float[Tensor, "m p"],
    before: Float[Tensor, " n"],
    after: Float[Tensor, " n"],
) -> Bool[Tensor, " m"]:
    """Whether the shifts of some classes shall move by −gap, where rows lie so far (squared) before and after that.

    Most rows have to be much nearer then, and so many of them that they are no outliers; or else the distances of all
    samples, the earlier ones by their mean square, must not add up to much more than before. A shift that began at an
    outlier leaves it so, and where samples have come from two places it goes to the later ones, like which more may
    come.
    """

    def summed(values: Tensor) -> Tensor:
        return values.new_zeros(len(classes)).index_add_(0, places, values)

    speaking, rows = summed((_NEARER * after < before).to(after.dtype)), summed(torch.ones_like(after))
    n = state["counts"][classes]
    squares = state["squares"][classes]
    moved = squares + 2 * (gap * total(state, "sums", classes)).sum(1) + n * gap.square().sum(1)
    cost = (n * squares).sqrt() + summed(before.sqrt())
    moved_cost = (n * moved.clamp(min=0)).sqrt() + summed(after.sqrt())
    return (2 * speaking > rows) & ((speaking >= _MANY) | (moved_cost < _MORE * cost))


def drifted(state: Mapping[str, Tensor]) -> tuple[Bool[Tensor, " k"], Float[Tensor, "k p"]]:
    """Classes whose mean lies away from their shift by a good part of their spread, and all class means."""
    n = state["counts"].clamp(min=1)
    delta = total(state, "sums", slice(None)) / n[:, None]
    square = delta.square().sum(1)
    far = square > _DRIFT * (state["squares"] / n - square)
    return far & (state["counts"] >= _LEAST_COUNT), delta.add_(state["shift"])
