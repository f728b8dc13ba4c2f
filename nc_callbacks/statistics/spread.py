"""How far samples lie from their shifts, and which batches float32 would not hold together with the others."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

_OUTWEIGHING = 1 / 4
"""Share of the squares of all samples so far that one sample may have."""

_FAR = 4
"""Mean squared distance of a batch from its shifts, of the usual one, from which on it is far."""


@dataclass
class Spread:
    """Squared distances of samples from their shifts: of all, and of those that were not far when they came."""

    total: float
    usual: float
    samples: int
    """Those that were not far, but for the first of each class: with b of a class, its mean is nearer by a b-th."""
    taken_at: int
    """The number of all samples when this was taken from the sums."""

    @staticmethod
    def of(counts: Tensor, squares: Tensor) -> Spread:
        """The spread of sums, with all of their samples as usual ones."""
        n, square = int(counts.sum()), float(squares.sum())
        return Spread(square, square, n - int(counts.count_nonzero()), n)

    @property
    def mean(self) -> float:
        """The usual squared distance; infinite where it is not known yet."""
        return self.usual / self.samples if self.samples > 0 else math.inf

    def is_far(self, added: float, largest: float, rows: int) -> bool:
        """Count a batch, with the sum and the largest of its squared distances; whether it is far from its shifts."""
        self.total += added
        if largest > _OUTWEIGHING * self.total or added > _FAR * self.mean * rows:
            return True
        self.usual += added
        self.samples += rows
        return False

    def after_care(self, counts: Tensor, squares: Tensor, distances: Float[Tensor, " n"], classes: int) -> Spread:
        """The spread after a batch that was far, with its squared distances from the middle of its own classes.

        If the batch's own spread is larger, this is the usual one from now on. A batch of hardly more samples than
        classes does not tell; then all samples do, when they have doubled.
        """
        n = len(distances)
        if n < 2 * classes:
            return Spread.of(counts, squares) if int(counts.sum()) >= 2 * self.taken_at else self._with(squares)
        own = float(distances.median()) * n / (n - classes)
        if math.isinf(self.mean) or own > self.mean:
            self.usual, self.samples = own * n, n
        return self._with(squares)

    def _with(self, squares: Tensor) -> Spread:
        self.total = float(squares.sum())
        return self
