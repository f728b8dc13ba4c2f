"""Batches that wait for one another: each sum costs as much for one sample as for a hundred."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from nc_callbacks.probe import Batch

_ROWS = 1024
_BYTES = 16 * 2**20


class Waiting:
    """Batches until there are 1,024 samples, or 16 MiB."""

    def __init__(self) -> None:
        self._batches: list[Batch] = []

    def add(self, batch: Batch) -> Iterator[Batch]:
        """Give what has waited long enough."""
        if self._batches and _widths(batch) != _widths(self._batches[0]):
            yield from self.take()
        self._batches.append(batch)
        if sum(len(b.targets) for b in self._batches) >= _ROWS or sum(b.nbytes for b in self._batches) >= _BYTES:
            yield from self.take()

    def take(self) -> Iterator[Batch]:
        """Give what waits, as one batch."""
        batches, self._batches = self._batches, []
        if len(batches) > 1:
            features = {layer: torch.cat([b.features[layer] for b in batches]) for layer in batches[0].features}
            outputs, targets = (torch.cat([getattr(b, name) for b in batches]) for name in ("outputs", "targets"))
            yield Batch(features, outputs, targets)
        else:
            yield from batches


def together(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The same samples in fewer batches."""
    waiting = Waiting()
    for batch in batches:
        yield from waiting.add(batch)
    yield from waiting.take()


def _widths(batch: Batch) -> list[int]:
    return [rows.shape[1] for rows in (*batch.features.values(), batch.outputs)]
