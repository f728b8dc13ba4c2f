"""A loader of one's own over the data of another: sequential, shared among ranks, without a trace."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
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
    """

    def __init__(self, indices: Sequence[int], batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.indices, self.batch_size = indices, batch_size
        self.own = indices[rank::world_size]
        self.counted = math.ceil(len(self.own) / batch_size)
        self.total = math.ceil(math.ceil(len(indices) / world_size) / batch_size)

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[list[int]]:
        return map(self.indices_of, range(self.total))

    def indices_of(self, batch: int) -> list[int]:
        """Indices in the dataset of the samples of a batch."""
        if batch >= self.counted:
            return [self.indices[0]]
        return list(self.own[batch * self.batch_size : (batch + 1) * self.batch_size])


def own_loader(loader: Any, rank: int = 0, world_size: int = 1, workers: int | None = None) -> tuple[Any, int | None]:
    """A loader over the same data as `loader`, sequential and with its own generator, and how many batches count.

    Same dataset, collate function, batch size and workers. A `SubsetRandomSampler` keeps its subset. A loader over an
    `IterableDataset` is made again with the same settings; anything that is no `DataLoader` is iterated as it is (the
    count is None for both: every batch counts).

    Args:
        loader: The user's loader.
        rank: This process.
        world_size: Number of processes that share the data.
        workers: Worker processes; by default as many as `loader` has.

    Raises:
        ValueError: The loader is empty, or a collection of loaders.
    """
    if isinstance(loader, Mapping) or (isinstance(loader, Sequence) and any(isinstance(x, DataLoader) for x in loader)):
        raise ValueError(
            f"Expected one loader, got {len(loader)} in a {type(loader).__name__}. Neural collapse is measured on one "
            "set of samples: train on a single loader, or on one dataset made of several (ConcatDataset)."
        )
    if not isinstance(loader, DataLoader):
        return loader, None
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
        return DataLoader(dataset, batch_size=loader.batch_size, drop_last=False, **settings), None
    sampler = _unwrapped(loader.sampler)
    subset = isinstance(sampler, SubsetRandomSampler)
    indices: Sequence[int] = sorted(sampler.indices) if subset else range(len(dataset))  # type: ignore
    if not isinstance(sampler, _WHOLE_DATASET) and not subset:
        rank_zero_warn(
            f"{type(sampler).__name__} is not known to neural-collapse looks, which go through all "
            f"{len(indices)} samples of the {type(dataset).__name__} once. If it leaves samples out, train on a Subset."
        )
    if not len(indices):
        raise ValueError(f"The loader is empty: its {type(dataset).__name__} has no samples.")
    batched = loader.batch_size is not None or loader.batch_sampler is not None
    batch_size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
    batch_size = batch_size or (_BATCH_SIZE if batched else 1)
    batches = RankBatches(indices, batch_size, rank, world_size)
    if batched:
        return DataLoader(dataset, batch_sampler=batches, **settings), batches.counted
    flat = [batch[0] for batch in batches]
    return DataLoader(dataset, batch_size=None, sampler=flat, **settings), batches.counted


def _unwrapped(sampler: Any) -> Any:
    """The user's sampler, which Lightning wraps under DDP so that ranks share it."""
    return getattr(getattr(sampler, "dataset", None), "_sampler", sampler)
