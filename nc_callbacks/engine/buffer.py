"""Samples that wait until there are enough of them to be worth the work, and the memory for keeping them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nc_callbacks.probe import Batch

_ROWS = 4096
_BYTES = 16 * 2**20
"""Samples wait up to this number or this size: each sum costs as much for one sample as for a hundred."""


@dataclass(frozen=True)
class Samples:
    """One row per sample of one or several batches."""

    features: dict[str, Float[Tensor, "n p"]]
    """By layer."""
    outputs: Float[Tensor, "n k"]
    targets: Int[Tensor, " n"]
    counted: Bool[Tensor, " n"] | None = None
    """Which of them count; None where all do, as always on a CPU, where the others are left out."""

    @classmethod
    def of(cls, batch: Batch, ignore_index: int | None) -> Samples:
        """The samples of a batch, with the one decision which of them count."""
        samples = cls(batch.features, batch.outputs, batch.targets)
        if ignore_index is None:
            return samples
        counted = batch.targets != ignore_index
        # Elsewhere than on a CPU asking for the number of rows would wait for the device.
        if counted.device.type != "cpu":
            return replace(samples, counted=counted)
        return samples if bool(counted.all()) else samples.rows(counted)

    @classmethod
    def joined(cls, parts: Sequence[Samples]) -> Samples:
        """The samples of all parts, in order."""
        if len(parts) == 1:
            return parts[0]
        features = {layer: torch.cat([part.features[layer] for part in parts]) for layer in parts[0].features}
        counted = None if parts[0].counted is None else torch.cat([p.counted for p in parts if p.counted is not None])
        outputs, targets = (torch.cat([getattr(part, name) for part in parts]) for name in ("outputs", "targets"))
        return cls(features, outputs, targets, counted)

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def nbytes(self) -> int:
        """Memory that they take."""
        return sum(tensor.nbytes for tensor in (*self.features.values(), self.outputs, self.targets))

    @property
    def widths(self) -> list[int]:
        """Columns of the features and outputs."""
        return [rows.shape[1] for rows in (*self.features.values(), self.outputs)]

    def rows(self, kept: Tensor) -> Samples:
        """Some of the samples."""
        features = {layer: rows[kept] for layer, rows in self.features.items()}
        return Samples(features, self.outputs[kept], self.targets[kept])

    def total(self, holds: Bool[Tensor, " n"]) -> Int[Tensor, ""]:
        """For how many of those that count something holds."""
        return (holds if self.counted is None else holds & self.counted).sum()

    def number(self) -> Int[Tensor, ""]:
        """How many count."""
        # Filled on the device: a number that is copied there would wait for it.
        return self.targets.new_full((), len(self)) if self.counted is None else self.counted.sum()


class Buffer:
    """Samples until there are 4,096, or 16 MiB."""

    def __init__(self) -> None:
        self._parts: list[Samples] = []
        self._rows = self._bytes = 0

    def add(self, samples: Samples) -> Iterator[Samples]:
        """Hand on what has waited long enough."""
        if self._parts and samples.widths != self._parts[0].widths:
            yield from self.take()
        self._parts.append(samples)
        self._rows += len(samples)
        self._bytes += samples.nbytes
        if self._rows >= _ROWS or self._bytes >= _BYTES:
            yield from self.take()

    def take(self) -> Iterator[Samples]:
        """Hand on what waits, joined."""
        parts, self._parts = self._parts, []
        self._rows = self._bytes = 0
        if parts:
            yield Samples.joined(parts)


class Budget:
    """Memory that all caches of a trainer share.

    Args:
        size: Bytes.
    """

    def __init__(self, size: int) -> None:
        self.room = size

    def take(self, size: int) -> bool:
        """Use so many bytes; False where there is no room for them."""
        if size > self.room:
            return False
        self.room -= size
        return True

    def give_back(self, size: int) -> None:
        """Free so many bytes."""
        self.room += size


class Cache:
    """Samples kept for what needs the final class means; given up as a whole where the budget is exceeded.

    Args:
        budget: Shared with the other caches.
        layers: Layers whose features are kept.
        outputs: Whether the outputs are kept.
    """

    def __init__(self, budget: Budget, layers: Sequence[str], outputs: bool) -> None:
        self.budget = budget
        self.layers = layers
        self.outputs = outputs
        self.complete = True
        self._parts: list[Samples] = []
        self._held = 0

    def add(self, samples: Samples) -> None:
        """Keep what is needed of them."""
        if not self.complete:
            return
        features = {layer: samples.features[layer] for layer in self.layers}
        outputs = samples.outputs if self.outputs else samples.outputs[:, :0]
        part = replace(samples, features=features, outputs=outputs)
        self.complete = self.budget.take(part.nbytes)
        if self.complete:
            self._held += part.nbytes
            self._parts.append(part)
        else:
            self.clear()

    def __iter__(self) -> Iterator[Samples]:
        return iter(self._parts)

    def clear(self) -> None:
        """Free the memory."""
        self._parts = []
        self.budget.give_back(self._held)
        self._held = 0
