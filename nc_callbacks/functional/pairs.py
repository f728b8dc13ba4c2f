"""Averages over all pairs of classes: one product per tile of the k × k cosines serves all, and none is kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, reduce
from math import isqrt

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import threshold

from nc_callbacks.functional import _common
from nc_callbacks.functional._common import as_matrix, common_dtype, full_precision, row_parts, scaled
from nc_callbacks.statistics.precision import wide_dtype

_NEAR = 0.01
"""Squared distance of directions below which 2 − 2 cos has lost digits."""


_Moments = tuple[int, Tensor, Tensor]


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

    vectors: tuple[Tensor, Tensor]
    """Of both, as they were given."""
    scaled: tuple[Tensor, Tensor]
    """The same divided by their scale, in the dtype of the products."""
    scale: Tensor
    squares: tuple[Tensor, Tensor]
    """Squared norms of the scaled ones."""
    spreads: tuple[Tensor, Tensor] | None
    """Traces of both over the squared scale, where they are given."""
    nearest: float
    """Squared distance of scaled vectors that is none."""
    pairs: Tensor | None
    """Which entries are pairs c < c', where not all are."""

    @cached_property
    def products(self) -> Tensor:
        return self.scaled[0] @ self.scaled[1].T

    @cached_property
    def cosines(self) -> Tensor:
        some, others = (squares.rsqrt() for squares in self.squares)
        return self.products * some[:, None] * others

    @cached_property
    def directions(self) -> Tensor:
        """Squared distances of the directions; 1 for what is no pair."""
        squared = self.picked(2 - 2 * self.cosines, 1)
        if not len(self.near[0]):
            return squared
        some, others = (x / x.norm(dim=1, keepdim=True) for x in self.vectors)
        return squared.index_put(self.near, self._exact(some, others).to(squared.dtype))

    @cached_property
    def distances(self) -> Tensor:
        """Squared distances of the scaled vectors; 1 for what is no pair."""
        some, others = self.squares
        squared = threshold(some[:, None] + others - 2 * self.products, self.nearest, 0)
        if len(self.near[0]):
            exact = threshold(self._exact(*self.vectors) / self.scale.square(), self.nearest, 0)
            squared = squared.index_put(self.near, exact.to(squared.dtype))
        return self.picked(squared, 1)

    @cached_property
    def near(self) -> tuple[Tensor, ...]:
        """Pairs whose inner product says too little of their distance."""
        return (self.picked(2 - 2 * self.cosines, 1) < _NEAR).nonzero(as_tuple=True)

    def _exact(self, some: Tensor, others: Tensor) -> Tensor:
        """Squared distances of the near pairs."""
        step = max(1, _common.BLOCK_BYTES // (some.shape[1] * some.dtype.itemsize))
        parts = zip(*(index.split(step) for index in self.near), strict=True)
        return torch.cat([(some[i] - others[j]).square().sum(1) for i, j in parts])

    def picked(self, values: Tensor, other: float) -> Tensor:
        """`values` at pairs; what is no pair is replaced before it can spoil a gradient."""
        return values if self.pairs is None else torch.where(self.pairs, values, other)

    def count(self) -> int:
        rows, columns = self.products.shape
        return rows * columns if self.pairs is None else rows * (rows - 1) // 2


@full_precision
def pair_metrics(
    vectors: Float[Tensor, "k p"], traces: Float[Tensor, " k"] | None = None, nearest: Tensor | float = 0.0
) -> PairMetrics:
    """CDNV, equiangularity and uniformity together, for a third of what they cost one by one.

    Args:
        vectors: Centred class means, used as they stand.
        traces: v_c = tr C_c, the within-class variances; None leaves out the CDNV.
        nearest: Distance of class means up to which they coincide.

    Raises:
        ValueError: The shapes do not fit, or there are fewer than two classes.

    Example:
        >>> pair_metrics(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([0.1, 0.3])).cdnv
        tensor(0.0500)
    """
    vectors = as_matrix("vectors", vectors, common_dtype(vectors, traces))
    if traces is not None:
        traces = checked_traces(traces, vectors)
    cdnv, angles, logs = None, None, None
    for tile in _tiles(vectors, traces, nearest):
        if traces is not None:
            cdnv = _added(cdnv, _variance_ratios(tile))
        angles = _added(angles, _deviations(tile, len(vectors)))
        logs = _merged(logs, _log_distances(tile))
    assert angles is not None
    assert logs is not None
    number, total, squares = logs
    return PairMetrics(
        cdnv=None if cdnv is None else (cdnv / number).to(vectors.dtype),
        equiangularity=(angles / number).to(vectors.dtype),
        uniformity=(total / number).to(vectors.dtype),
        uniformity_var=(squares / number).to(vectors.dtype),
    )


def mean_variance_ratio(
    means: Float[Tensor, "k p"], traces: Float[Tensor, " k"], nearest: Tensor | float = 0.0
) -> Float[Tensor, ""]:
    """The CDNV alone."""
    total = reduce(_added, map(_variance_ratios, _tiles(means, traces, nearest)))
    return (total / (len(means) * (len(means) - 1) / 2)).to(means.dtype)


def mean_angle_deviation(vectors: Float[Tensor, "k p"]) -> Float[Tensor, ""]:
    """The equiangularity alone."""
    total = reduce(_added, (_deviations(tile, len(vectors)) for tile in _tiles(vectors)))
    return (total / (len(vectors) * (len(vectors) - 1) / 2)).to(vectors.dtype)


def log_distances(vectors: Float[Tensor, "k p"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The uniformity alone."""
    number, total, squares = reduce(_merged, map(_log_distances, _tiles(vectors)))
    return (total / number).to(vectors.dtype), (squares / number).to(vectors.dtype)


def checked_traces(traces: Tensor, means: Tensor) -> Tensor:
    """The traces in the dtype of the means, checked to be one a class."""
    if traces.shape != means.shape[:1]:
        raise ValueError(
            f"traces must be ({len(means)},) to go with {len(means)} class means, got {tuple(traces.shape)}."
        )
    return traces.to(means.dtype)


def _tiles(vectors: Tensor, traces: Tensor | None = None, nearest: Tensor | float = 0.0) -> Iterator[_Tile]:
    """Tiles on and above the diagonal, within `BLOCK_BYTES` each."""
    k, p = vectors.shape
    # The mean cosine cannot come near −1/(k−1) where 2p < k, so that float32 leaves the deviations their digits.
    many = k > _common.MANY and 2 * p < k
    vectors, unit = scaled(vectors, widen=not many)
    scale = _scale(vectors) if many else vectors.new_ones((), dtype=wide_dtype(vectors.device))
    products = torch.cat([(x / scale).float() for (x,) in row_parts(vectors)]) if many else vectors
    squares = torch.cat([part.square().sum(1) for (part,) in row_parts(products)])
    lost = (squares > 0) & (squares < torch.finfo(torch.float32).tiny / torch.finfo(torch.float32).eps)
    if many and lost.any():
        # Rows so short have no squares in float32.
        products = vectors = torch.cat([x / scale for (x,) in row_parts(vectors)])
        unit, scale = unit * float(scale), torch.ones_like(scale)
    squares = squares.to(products.dtype)
    spreads = None if traces is None else (traces / (unit * scale) / (unit * scale)).to(products.dtype)
    closest = (float(nearest) / float(unit * scale)) ** 2
    side = max(1, isqrt(_common.BLOCK_BYTES // products.dtype.itemsize))
    for start in range(0, k, side):
        rows = slice(start, start + side)
        for begin in range(start, k, side):
            columns = slice(begin, begin + side)
            pairs = None
            if begin == start:
                pairs = torch.ones_like(squares[rows], dtype=torch.bool).expand(len(squares[rows]), -1).triu(1)
            yield _Tile(
                vectors=(vectors[rows], vectors[columns]),
                scaled=(products[rows], products[columns]),
                scale=scale,
                squares=(squares[rows], squares[columns]),
                spreads=None if spreads is None else (spreads[rows], spreads[columns]),
                nearest=closest,
                pairs=pairs,
            )


def _scale(vectors: Tensor) -> Tensor:
    """Root mean square of the norms, or 1 where all are 0."""
    square = torch.stack([x.square().sum() for (x,) in row_parts(vectors.detach())]).sum() / len(vectors)
    return torch.where(square > 0, square, torch.ones_like(square)).sqrt()


def _deviations(tile: _Tile, k: int) -> Tensor:
    """Sum of |cos + 1/(k−1)|."""
    return _total(tile.picked((tile.cosines + 1 / (k - 1)).abs(), 0))


def _variance_ratios(tile: _Tile) -> Tensor:
    """Sum of (v_c + v_c') / (2 ‖m_c − m_c'‖²)."""
    assert tile.spreads is not None
    spreads = (tile.spreads[0][:, None] + tile.spreads[1]) / 2
    return _total(tile.picked(spreads / tile.distances, 0))


def _log_distances(tile: _Tile) -> _Moments:
    """Number, sum and summed squared deviation of log(1/‖û_c − û_c'‖)."""
    values = tile.directions.log() / -2
    total = _total(values)
    # What is no pair has the logarithm 0, and no deviation.
    deviations = tile.picked(values - (total / max(tile.count(), 1)).to(values.dtype), 0)
    return tile.count(), total, _total(deviations.square())


def _total(values: Tensor) -> Tensor:
    """The sum, in float64 where the device has it."""
    return values.sum(1).sum(dtype=wide_dtype(values.device))


def _added(total: Tensor | None, part: Tensor) -> Tensor:
    # A list of parts, small tensors between the large ones, would keep the system's memory in pieces (measured).
    return part if total is None else total + part


def _merged(a: _Moments | None, b: _Moments) -> _Moments:
    """Number, sum and summed squared deviation of both, by the pairwise formula of Chan et al. (1979)."""
    if a is None or not a[0]:
        return b
    if not b[0]:
        return a
    number = a[0] + b[0]
    gap = b[1] / b[0] - a[1] / a[0]
    return number, a[1] + b[1], a[2] + b[2] + a[0] * b[0] / number * gap.square()
