"""What is averaged over all pairs of classes: one product a tile of the k × k cosines serves all, and none is kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import isqrt

import torch
from jaxtyping import Float
from torch import Tensor

from nc_callbacks.functional import _common
from nc_callbacks.functional._common import as_matrix, common_dtype, row_parts

_NEAR = 0.01
"""Squared distance of directions below which 2 − 2 cos has lost digits."""


@dataclass(frozen=True)
class PairMetrics:
    """Averages over the pairs of classes c < c'."""

    cdnv: Float[Tensor, ""] | None
    """`nc1_cdnv`, where traces were given."""
    equiangularity: Float[Tensor, ""]
    """`nc2_equiangularity`."""
    uniformity: Float[Tensor, ""]
    """Mean of `nc2_uniformity`."""
    uniformity_var: Float[Tensor, ""]
    """Its variance."""


@dataclass(frozen=True)
class _Tile:
    """Inner products of some classes' vectors with some others'."""

    some: Tensor
    others: Tensor
    squares: tuple[Tensor, Tensor]
    """Squared norms of both."""
    spreads: tuple[Tensor, Tensor] | None
    """Traces of both, where they are given."""
    pairs: Tensor | None
    """Which entries are pairs c < c', where not all are."""

    @cached_property
    def products(self) -> Tensor:
        return self.some @ self.others.T

    @cached_property
    def cosines(self) -> Tensor:
        some, others = self.norms
        return self.products / some[:, None] / others

    @property
    def norms(self) -> tuple[Tensor, Tensor]:
        return self.squares[0].sqrt(), self.squares[1].sqrt()

    def picked(self, values: Tensor, other: float) -> Tensor:
        """`values` at pairs; what is no pair is replaced before it can spoil a gradient."""
        return values if self.pairs is None else torch.where(self.pairs, values, other)

    def count(self) -> int:
        rows, columns = len(self.some), len(self.others)
        return rows * columns if self.pairs is None else rows * (rows - 1) // 2


def pair_metrics(vectors: Float[Tensor, "k p"], traces: Float[Tensor, " k"] | None = None) -> PairMetrics:
    """CDNV, equiangularity and uniformity together, for a third of what they cost one by one.

    Args:
        vectors: Centred class means, used as they stand.
        traces: v_c = tr C_c, the within-class variances; None leaves out the CDNV.

    Raises:
        ValueError: The shapes do not fit, or there are fewer than two classes.

    Example:
        >>> pair_metrics(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([0.1, 0.3])).cdnv
        tensor(0.0500)
    """
    vectors = as_matrix("vectors", vectors, common_dtype(vectors, traces))
    if traces is not None:
        traces = checked_traces(traces, vectors)
    cdnv, angles, logs = [], [], []
    for tile in _tiles(vectors, traces):
        if traces is not None:
            cdnv.append(_variance_ratios(tile))
        angles.append(_deviations(tile, len(vectors)))
        logs.append(_log_distances(tile))
    pairs = len(vectors) * (len(vectors) - 1) / 2
    mean, variance = _merged(logs)
    return PairMetrics(
        cdnv=torch.stack(cdnv).sum() / pairs if cdnv else None,
        equiangularity=torch.stack(angles).sum() / pairs,
        uniformity=mean,
        uniformity_var=variance,
    )


def mean_variance_ratio(means: Float[Tensor, "k p"], traces: Float[Tensor, " k"]) -> Float[Tensor, ""]:
    """The CDNV alone."""
    parts = [_variance_ratios(tile) for tile in _tiles(means, traces)]
    return torch.stack(parts).sum() / (len(means) * (len(means) - 1) / 2)


def mean_angle_deviation(vectors: Float[Tensor, "k p"]) -> Float[Tensor, ""]:
    """The equiangularity alone."""
    parts = [_deviations(tile, len(vectors)) for tile in _tiles(vectors)]
    return torch.stack(parts).sum() / (len(vectors) * (len(vectors) - 1) / 2)


def log_distances(vectors: Float[Tensor, "k p"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The uniformity alone."""
    return _merged([_log_distances(tile) for tile in _tiles(vectors)])


def checked_traces(traces: Tensor, means: Tensor) -> Tensor:
    """The traces in the dtype of the means, checked to be one a class."""
    if traces.shape != means.shape[:1]:
        raise ValueError(
            f"traces must be ({len(means)},) to go with {len(means)} class means, got {tuple(traces.shape)}."
        )
    return traces.to(means.dtype)


def _tiles(vectors: Tensor, traces: Tensor | None = None) -> Iterator[_Tile]:
    """Tiles on and above the diagonal, within `BLOCK_BYTES` each."""
    side = max(1, isqrt(_common.BLOCK_BYTES // vectors.dtype.itemsize))
    squares = torch.cat([part.square().sum(1) for (part,) in row_parts(vectors)])
    for start in range(0, len(vectors), side):
        rows = slice(start, start + side)
        for begin in range(start, len(vectors), side):
            columns = slice(begin, begin + side)
            some, others = vectors[rows], vectors[columns]
            pairs = None
            if begin == start:
                pairs = torch.ones(len(some), len(some), dtype=torch.bool, device=some.device).triu(1)
            spreads = None if traces is None else (traces[rows], traces[columns])
            yield _Tile(some, others, (squares[rows], squares[columns]), spreads, pairs)


def _deviations(tile: _Tile, k: int) -> Tensor:
    """Sum of |cos + 1/(k−1)|."""
    return tile.picked((tile.cosines + 1 / (k - 1)).abs(), 0).sum()


def _variance_ratios(tile: _Tile) -> Tensor:
    """Sum of (v_c + v_c') / (2 ‖m_c − m_c'‖²)."""
    assert tile.spreads is not None
    some, others = tile.squares
    distances = some[:, None] + others - 2 * tile.products
    spreads = (tile.spreads[0][:, None] + tile.spreads[1]) / 2
    return tile.picked(spreads / tile.picked(distances.clamp(min=0), 1), 0).sum()


def _log_distances(tile: _Tile) -> tuple[int, Tensor, Tensor]:
    """Number, sum and summed squared deviation of log(1/‖û_c − û_c'‖)."""
    squared = tile.picked(2 - 2 * tile.cosines, 1)
    near = (squared < _NEAR).nonzero()
    step = max(1, _common.BLOCK_BYTES // (tile.some.shape[1] * squared.dtype.itemsize))
    some, others = (
        vectors / norms[:, None] for vectors, norms in zip((tile.some, tile.others), tile.norms, strict=True)
    )
    exact = [(some[i] - others[j]).square().sum(1) for i, j in (part.unbind(1) for part in near.split(step))]
    squared = squared.index_put(near.unbind(1), torch.cat(exact))
    values = -squared.log() / 2
    total = values.sum()
    # What is no pair has the logarithm 0, and no deviation.
    deviations = tile.picked(values - total / max(tile.count(), 1), 0)
    return tile.count(), total, deviations.square().sum()


def _merged(parts: list[tuple[int, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean and variance of all, from number, sum and summed squared deviation of each part."""
    parts = [part for part in parts if part[0]]
    number = sum(count for count, _, _ in parts)
    mean = torch.stack([total for _, total, _ in parts]).sum() / number
    squares = [squared + count * (total / count - mean).square() for count, total, squared in parts]
    return mean, torch.stack(squares).sum() / number
