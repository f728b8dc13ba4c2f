"""Loaders of one's own over the data of others: sequential, shared among ranks, without a trace."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

_WHOLE_DATASET = (SequentialSampler, RandomSampler, WeightedRandomSampler, DistributedSampler)
"""Samplers over a whole dataset: a look takes each sample once."""

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
    """

    def __init__(
        self,
        indices: Sequence[int],
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        limit: float = math.inf,
    ) -> None:
        self.indices, self.batch_size = indices, batch_size
        most = int(min(limit, math.ceil(len(indices) / world_size)))
        self.own = indices[rank::world_size][:most]
        self.counted = math.ceil(len(self.own) / batch_size)
        self.total = math.ceil(most / batch_size)

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[list[int]]:
        return map(self.indices_of, range(self.total))

    def indices_of(self, batch: int) -> list[int]:
        """Indices in the dataset of the samples of a batch."""
        if batch >= self.counted:
            return [self.indices[0]]
        return list(self.own[batch * self.batch_size : (batch + 1) * self.batch_size])


@dataclass(frozen=True)
class TensorBatches:
    """Whole batches of a `TensorDataset` at once, much faster than row by row, and equal."""

    dataset: TensorDataset
    batches: RankBatches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Tensor]]:
        return (list(self.dataset[indices]) for indices in self.batches)


@dataclass(frozen=True)
class OwnLoader:
    """A loader of one's own."""

    loader: Any
    """Gives this rank's batches."""
    batches: RankBatches | None = None
    """What it goes through, where the data has indices; otherwise every batch counts."""
    limit: float = math.inf
    """Batches at most."""
    first_index: int = 0
    """Index of its first sample, where it is one of several loaders: they count on."""

    def __len__(self) -> int:
        return int(min(len(self.loader), self.limit))

    def counts(self, batch: int) -> bool:
        """Whether the batch of that number counts, or is one of the surplus that ranks make to stay in step."""
        return self.batches is None or batch < self.batches.counted

    def indices_of(self, batch: int) -> list[int] | None:
        """Indices of the samples of the batch of that number, where they are known."""
        if self.batches is None:
            return None
        return [self.first_index + index for index in self.batches.indices_of(batch)]


def single_loaders(loader: Any) -> list[Any]:
    """The loaders of a collection (a list, a dict, a `CombinedLoader`), or the one that is given."""
    if hasattr(loader, "flattened") and hasattr(loader, "iterables"):
        loader = loader.iterables
    if not isinstance(loader, Mapping | list | tuple) or not _holds_loaders(loader):
        return [loader]
    parts = loader.values() if isinstance(loader, Mapping) else loader
    return [single for part in parts for single in single_loaders(part)]


def _holds_loaders(part: Any) -> bool:
    """Whether it is a loader or made of loaders alone: a list of batches is one loader."""
    if isinstance(part, Mapping):
        return all(map(_holds_loaders, part.values()))
    if isinstance(part, list | tuple):
        return all(map(_holds_loaders, part))
    return hasattr(part, "__iter__") and not isinstance(part, Tensor | str)


def own_loaders(
    loader: Any,
    rank: int = 0,
    world_size: int = 1,
    workers: int | None = None,
    divide_batch: int = 1,
    limit: float = math.inf,
    warn: Callable[[str], None] = rank_zero_warn,
) -> list[OwnLoader]:
    """Loaders over the same data as `loader`, sequential and with their own generators: one, or one for each of many.

    Same dataset, collate function, batch size and workers. A `SubsetRandomSampler` keeps its subset. A loader over an
    `IterableDataset` is made again with the same settings; anything that is no `DataLoader` is iterated as it is.

    Args:
        loader: The user's loader, or a collection of loaders, which are gone through one after the other.
        rank: This process.
        world_size: Number of processes that share the data.
        workers: Worker processes; by default as many as `loader` has.
        divide_batch: Make batches so many times smaller.
        limit: Batches of the user's size at most, a loader.
        warn: Called with what a user has to know.

    Raises:
        ValueError: A loader is empty, or an iterator that can be gone through only once.
    """
    first_index, loaders = 0, []
    for single in single_loaders(loader):
        own = _own_loader(single, rank, world_size, workers, divide_batch, limit, warn, first_index)
        loaders.append(own)
        first_index += len(single.dataset) if own.batches is not None else 0
    if not loaders:
        raise ValueError(f"The loader is empty: a {type(loader).__name__} without loaders.")
    return loaders


def _own_loader(
    loader: Any,
    rank: int,
    world_size: int,
    workers: int | None,
    divide_batch: int,
    limit: float,
    warn: Callable[[str], None],
    first_index: int,
) -> OwnLoader:
    if not isinstance(loader, DataLoader):
        if hasattr(loader, "__next__"):
            raise ValueError(
                f"Expected a loader that can be gone through again, got the iterator {type(loader).__name__}, whose "
                "batches a look would take from training. Pass an object whose __iter__ starts anew, such as a "
                "DataLoader."
            )
        return OwnLoader(loader, limit=limit)
    dataset: Dataset = loader.dataset
    settings: dict[str, Any] = {
        "collate_fn": loader.collate_fn,
        "num_workers": loader.num_workers if workers is None else workers,
        "pin_memory": loader.pin_memory,
        "timeout": loader.timeout if workers is None else 0,
        "worker_init_fn": loader.worker_init_fn,
        "generator": torch.Generator().manual_seed(0),
    }
    if settings["num_workers"]:
        settings |= {"multiprocessing_context": loader.multiprocessing_context}
        settings |= {"prefetch_factor": loader.prefetch_factor}
    if isinstance(dataset, IterableDataset):
        if loader.batch_size is None:
            return OwnLoader(DataLoader(dataset, batch_size=None, **settings), limit=limit)
        size = max(1, loader.batch_size // divide_batch)
        limit = limit * loader.batch_size / size
        return OwnLoader(DataLoader(dataset, batch_size=size, drop_last=False, **settings), limit=limit)
    indices = _indices(loader, warn)
    if not len(indices):
        raise ValueError(f"The loader is empty: its {type(dataset).__name__} has no samples.")
    batched = loader.batch_size is not None or loader.batch_sampler is not None
    batch_size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
    batch_size = batch_size or (_BATCH_SIZE if batched else 1)
    batches = RankBatches(indices, max(1, batch_size // divide_batch), rank, world_size, limit * batch_size)
    made: Any
    if batched and type(dataset) is TensorDataset and loader.collate_fn is default_collate and not loader.pin_memory:
        made = TensorBatches(dataset, batches)
    elif batched:
        made = DataLoader(dataset, batch_sampler=batches, **settings)
    else:
        made = DataLoader(dataset, batch_size=None, sampler=[batch[0] for batch in batches], **settings)
    return OwnLoader(made, batches, first_index=first_index)


def _indices(loader: DataLoader, warn: Callable[[str], None]) -> Sequence[int]:
    """The samples that a loader over a map-style dataset goes through, each once and in order."""
    sampler, size = _unwrapped(loader.sampler), len(loader.dataset)  # type: ignore[arg-type]
    if isinstance(sampler, SubsetRandomSampler):
        return sorted(sampler.indices)
    # A batch sampler of one's own comes with a sequential sampler that it need not follow.
    batch_sampler_known = loader.batch_sampler is None or type(loader.batch_sampler) is BatchSampler
    if not (isinstance(sampler, _WHOLE_DATASET) and batch_sampler_known):
        unknown = loader.batch_sampler if isinstance(sampler, _WHOLE_DATASET) else sampler
        warn(
            f"{type(unknown).__name__} is not known to neural-collapse looks, which go through all {size} samples of "
            f"the {type(loader.dataset).__name__} once. If it leaves samples out, train on a Subset."
        )
    return range(size)


def _unwrapped(sampler: Any) -> Any:
    """The user's sampler, which Lightning wraps under DDP so that ranks share it."""
    return getattr(getattr(sampler, "dataset", None), "_sampler", sampler)


def distinct_samples(loader: Any, batch: int, size: int, rank: int, world_size: int) -> int | None:
    """How many samples at the start of a rank's batch are no repeats; None where that cannot be known.

    `DistributedSampler` repeats samples at the end, so that all ranks get equally many.

    Args:
        loader: The loader that the trainer iterates.
        batch: Number of the batch in the epoch.
        size: Samples in the batch.
        rank: This process.
        world_size: Number of processes.
    """
    if world_size == 1:
        return size
    if single_loaders(loader) != [loader]:
        return None
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        # Sharing a stream among ranks is the user's, who repeats nothing.
        return size
    sampler, batch_sampler = loader.sampler, loader.batch_sampler
    inner = getattr(batch_sampler, "sampler", sampler)
    sampler = inner if isinstance(inner, DistributedSampler) else sampler
    if not isinstance(sampler, DistributedSampler) or type(batch_sampler) is not BatchSampler:
        return None
    if sampler.drop_last:
        return size
    own = math.ceil((len(sampler.dataset) - rank) / world_size)  # type: ignore[arg-type]
    return min(max(own - batch * batch_sampler.batch_size, 0), size)
