"""A random projection of wide features that keeps their distances."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCKS = 4
"""Blocks of outputs, in each of which every feature has one place."""


class Projection:
    """A fixed sparse random projection R from p features to m, m ≤ `max_features` (Kane & Nelson 2014's blocks).

    Each of four blocks of m/4 outputs deals the features out in a random order, as evenly as it goes, with random
    signs, and adds up what falls together; all over √4. With n samples it costs 4 n p additions and 4 p numbers.

    For any vector x, over the seeds, ‖Rx‖² has the mean ‖x‖² and a variance of at most 2‖x‖⁴/m: a squared distance is
    kept within √(2/m) of itself (one standard deviation: 4.4 % for m = 1,024), a product xᵀy within ‖x‖‖y‖ √(2/m).

    Args:
        num_features: p.
        max_features: Outputs at most; m is the multiple of 4 below.
        seed: Of the random numbers.

    Example:
        >>> x = torch.randn(2, 30_000, generator=torch.Generator().manual_seed(0))
        >>> y = Projection(30_000, 1024)(x)
        >>> y.shape, bool((y[0] - y[1]).norm() / (x[0] - x[1]).norm() - 1 < 0.07)
        (torch.Size([2, 1024]), True)
    """

    def __init__(self, num_features: int, max_features: int, seed: int = 0) -> None:
        if max_features < BLOCKS:
            raise ValueError(f"max_features must be at least {BLOCKS}, got {max_features}.")
        self.num_features, self._width = num_features, max_features // BLOCKS
        self.num_outputs = BLOCKS * self._width
        generator = torch.Generator().manual_seed(seed)
        # Where the generator is, whatever the default device.
        with torch.device("cpu"):
            self._order = torch.stack([torch.randperm(num_features, generator=generator) for _ in range(BLOCKS)])
            self._signs = torch.randint(0, 2, (BLOCKS, num_features), generator=generator, dtype=torch.int8) * 2 - 1

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self._order.nbytes + self._signs.nbytes

    def __call__(self, x: Float[Tensor, "n p"]) -> Float[Tensor, "n m"]:
        """Rows of m numbers, in the precision of the given ones."""
        self._order, self._signs = self._order.to(x.device), self._signs.to(x.device)
        # Sums of many numbers of a short type are taken in a longer one.
        wide = torch.promote_types(x.dtype, torch.float32)
        blocks = [self._block(x, order, signs, wide) for order, signs in zip(self._order, self._signs, strict=True)]
        return (torch.cat(blocks, 1) / BLOCKS**0.5).to(x.dtype)

    def _block(self, x: Tensor, order: Int[Tensor, " p"], signs: Tensor, wide: torch.dtype) -> Tensor:
        dealt = x[:, order].to(wide) * signs.to(wide)
        rounds = -(-self.num_features // self._width)
        padded = torch.nn.functional.pad(dealt, (0, rounds * self._width - self.num_features))
        return padded.view(len(x), rounds, self._width).sum(1)
