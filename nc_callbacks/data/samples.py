"""Which samples an epoch of training takes, and in what batches a look takes them: each once, shared among ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from nc_callbacks.data.isolated import Isolated

_BATCH_SIZE = 128
"""For a batch sampler that does not say its batch size."""


class RankBatches(Sampler[list[int]]):
    """Batches of one rank's share of the indices, in order and without repeats.

    All ranks have the same number of batches, so that sharded models never wait for one another; batches from number
    `counted` on are surplus.

    Args:
        indices: All indices, in order.
        batch_size: Samples a batch.
        rank: This process.
        world_size: Number of processes.
        limit: Samples a process at most.
        none_of_one: No batch of a single sample beside larger ones, where training has none either.
    """

    def __init__(
        self,
        indices: Sequence[int],
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        limit: float = math.inf,
        none_of_one: bool = False,
    ) -> None:
        self.indices = indices
        most = int(min(limit, math.ceil(len(indices) / world_size)))
        self.own = indices[rank::world_size][:most]
        self.starts = _starts(len(self.own), batch_size, none_of_one)
        self.counted = len(self.starts) - 1
        self.total = max(len(_starts(size, batch_size, none_of_one)) for size in (most, most - 1)) - 1
        self.surplus = list(indices[: min(batch_size, 2)])

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[list[int]]:
        return map(self.indices_of, range(self.total))

    def indices_of(self, batch: int) -> list[int]:
        """Indices in the dataset of the samples of a batch."""
        if batch >= self.counted:
            return self.surplus
        return list(self.own[self.starts[batch] : self.starts[batch + 1]])


def _starts(samples: int, batch_size: int, none_of_one: bool) -> list[int]:
    """Where batches start, and the last ends."""
    starts = [*range(0, samples, batch_size), samples] if samples > 0 else [0]
    if none_of_one and batch_size > 1 and len(starts) > 2 and samples % batch_size == 1:
        if batch_size == 2:
            del starts[-2]
        else:
            starts[-2] -= 1
    return starts


class GivenBatches(Sampler[list[int]]):
    """Batches of a process alone, as a batch sampler made them up.

    Args:
        batches: Lists of indices.
        divide: Make them so many times smaller.
        limit: Batches of the given ones at most.
    """

    def __init__(self, batches: Sequence[Sequence[int]], divide: int = 1, limit: float = math.inf) -> None:
        self.batches = [
            list(batch[start : start + size])
            for batch in batches[: int(min(limit, len(batches)))]
            for size in [max(1, len(batch) // divide)]
            for start in range(0, len(batch), size)
        ]
        self.counted = len(self.batches)

    def __len__(self) -> int:
        return self.counted

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def indices_of(self, batch: int) -> list[int]:
        """Indices in the dataset of the samples of a batch."""
        return self.batches[batch]


@dataclass(frozen=True)
class _Drawn:
    """What a sampler gives in two epochs, on the side."""

    sampler: Any
    most: int

    def __iter__(self) -> Iterator[list[Any]]:
        return (list(islice(iter(self.sampler), self.most + 1)) for _ in range(2))


def batches_of(
    loader: DataLoader,
    rank: int,
    world_size: int,
    divide_batch: int,
    limit: float,
    warn: Callable[[str], None],
) -> RankBatches | GivenBatches:
    """The samples that an epoch of training takes from a loader over a map-style dataset, each once.

    A sampler of PyTorch's own over a whole dataset stands for all of it (`WeightedRandomSampler`: for what has a
    weight), `SubsetRandomSampler` for its subset; of others two epochs are drawn on the side. Where they have the same
    samples, these are taken, in the make-up of a batch sampler; where they have not, or on several ranks, all.

    Args:
        loader: The user's.
        rank: This process.
        world_size: Number of processes that share the data.
        divide_batch: Make batches so many times smaller.
        limit: Batches of the user's size at most.
        warn: Called with what a user has to know.

    Raises:
        ValueError: There are no samples.
    """
    bulk = loader.batch_sampler is None and isinstance(loader.sampler, BatchSampler)
    batch_sampler: Any = loader.sampler if bulk else loader.batch_sampler
    sampler, indices = _unwrapped(loader.sampler), None
    if type(batch_sampler) is BatchSampler:
        sampler = _unwrapped(batch_sampler.sampler)
    elif batch_sampler is not None:
        found = _drawn_batches(loader, batch_sampler, world_size, warn)
        if isinstance(found, list):
            return GivenBatches(found, divide_batch, limit)
        indices = found
    if indices is None:
        indices = _indices(loader, sampler, world_size, warn)
    if not len(indices):
        raise ValueError(f"The loader is empty: its {type(loader.dataset).__name__} has no samples.")
    batch_size = loader.batch_size or getattr(batch_sampler, "batch_size", None)
    batch_size = batch_size or (_BATCH_SIZE if batch_sampler is not None else 1)
    drop_last = loader.drop_last or getattr(batch_sampler, "drop_last", False)
    limit = limit * batch_size
    whole = math.ceil(len(indices) / world_size) // batch_size * batch_size
    if drop_last and _is_sequential(sampler) and whole:
        # The rest is never trained on.
        limit = min(limit, whole)
    return RankBatches(indices, max(1, batch_size // divide_batch), rank, world_size, limit, bool(drop_last))


def _indices(loader: DataLoader, sampler: Any, world_size: int, warn: Callable[[str], None]) -> Sequence[int]:
    """The samples that a sampler goes through, each once and in order."""
    size = len(loader.dataset)  # type: ignore[arg-type]
    if not _overrides_order(sampler):
        if isinstance(sampler, SubsetRandomSampler):
            return sorted(set(map(int, sampler.indices)))
        if isinstance(sampler, WeightedRandomSampler):
            whole = len(sampler.weights) == size and bool((sampler.weights > 0).all())
            return range(size) if whole else sampler.weights.nonzero().flatten().tolist()
        if isinstance(sampler, SequentialSampler | RandomSampler):
            return range(min(size, len(sampler.data_source)))
        if isinstance(sampler, DistributedSampler):
            return range(min(size, len(sampler.dataset)))  # type: ignore[arg-type]
    drawn = _two_epochs(sampler, size) if world_size == 1 else None
    if drawn is not None:
        first, second = (sorted(set(epoch)) for epoch in drawn)
        if first == second:
            return first
    return _all_samples(loader, sampler, warn)


def _drawn_batches(
    loader: DataLoader, batch_sampler: Any, world_size: int, warn: Callable[[str], None]
) -> list[list[int]] | Sequence[int]:
    """Batches of a batch sampler of somebody's own without repeats, or where that cannot be, all indices."""
    size = len(loader.dataset)  # type: ignore[arg-type]
    drawn = _two_epochs(batch_sampler, size) if world_size == 1 else None
    if drawn is None or {i for batch in drawn[0] for i in batch} != {i for batch in drawn[1] for i in batch}:
        return _all_samples(loader, batch_sampler, warn)
    seen: set[int] = set()
    batches = []
    for batch in drawn[0]:
        new = [index for index in dict.fromkeys(batch) if index not in seen]
        seen.update(new)
        batches += [new] if new else []
    return batches


def _two_epochs(sampler: Any, size: int) -> list[list[Any]] | None:
    """What a sampler gives in two epochs; None where it has no end or does not give indices."""
    try:
        most = max(len(sampler), size) if hasattr(sampler, "__len__") else 2 * size
        drawn = list(Isolated(_Drawn(sampler, most)))
        flat = [i for epoch in drawn for part in epoch for i in (part if isinstance(part, list | tuple) else [part])]
        ended = all(len(epoch) <= most for epoch in drawn)
        known = ended and all(0 <= int(index) < size for index in flat)
        return [[_plain(part) for part in epoch] for epoch in drawn] if known else None
    except Exception:
        return None


def _plain(part: Any) -> Any:
    """Indices that are tensors as integers, which equal ones are the same as."""
    if isinstance(part, list | tuple):
        return [_plain(index) for index in part]
    return int(part) if isinstance(part, Tensor) else part


def _all_samples(loader: DataLoader, unknown: Any, warn: Callable[[str], None]) -> range:
    size = len(loader.dataset)  # type: ignore[arg-type]
    warn(
        f"{type(unknown).__name__} is not known to neural-collapse looks, which go through all {size} samples of "
        f"the {type(loader.dataset).__name__} once. If it leaves samples out, train on a Subset."
    )
    return range(size)


def _unwrapped(sampler: Any) -> Any:
    """The user's sampler, which Lightning wraps under DDP so that ranks share it."""
    return getattr(getattr(sampler, "dataset", None), "_sampler", sampler)


def _overrides_order(sampler: Any) -> bool:
    """Whether it goes through indices in a way of its own, though it may derive from one of torch's samplers."""
    definer = next(kind for kind in type(sampler).__mro__ if "__iter__" in vars(kind) or kind is object)
    return definer.__module__.partition(".")[0] not in ("torch", "lightning", "pytorch_lightning")


def _is_sequential(sampler: Any) -> bool:
    if _overrides_order(sampler):
        return False
    return isinstance(sampler, SequentialSampler) or (isinstance(sampler, DistributedSampler) and not sampler.shuffle)
