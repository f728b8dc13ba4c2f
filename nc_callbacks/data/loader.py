"""Loaders of one's own over the data of others: sequential, shared among ranks, without a trace."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    TensorDataset,
    default_collate,
)
from torch.utils.data.dataloader import _BaseDataLoaderIter, _MultiProcessingDataLoaderIter

from nc_callbacks.data.handles import is_without_state
from nc_callbacks.data.isolated import Isolated
from nc_callbacks.data.samples import GivenBatches, RankBatches, batches_of

_MACHINERY = ("__iter__", "_get_iterator", "_index_sampler", "_auto_collation", "__len__")
"""Methods of a `DataLoader` that decide what batches it gives."""


@dataclass(frozen=True)
class TensorBatches:
    """Whole batches of a `TensorDataset` at once, much faster than row by row, and equal."""

    dataset: TensorDataset
    batches: RankBatches | GivenBatches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Tensor]]:
        return (list(self.dataset[indices]) for indices in self.batches)


@dataclass(frozen=True)
class OwnLoader:
    """A loader of one's own."""

    loader: Any
    """Gives this rank's batches."""
    batches: RankBatches | GivenBatches | None = None
    """Indices that it goes through, where the data has any; otherwise every batch counts."""
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
    return hasattr(part, "__iter__") and not isinstance(part, Tensor | np.ndarray | str)


def own_loaders(
    loader: Any,
    rank: int = 0,
    world_size: int = 1,
    workers: int | None = None,
    divide_batch: int = 1,
    limit: float = math.inf,
    warn: Callable[[str], None] = rank_zero_warn,
    stream_limit: float | None = math.inf,
) -> list[OwnLoader]:
    """Loaders over the same data as `loader`, sequential and with their own generators: one, or one for each of many.

    Same dataset, collate function, batch size and workers; which samples, see `nc_callbacks.data.samples.batches_of`. A
    `DataLoader` with machinery of its own (an overridden `__iter__`) runs it, over these batches. A stream (an
    `IterableDataset`, anything that is no `DataLoader`) is gone through as it is, to the end that its length or
    training gives it. Data that may change when it is read is read in a process of its own where that can be.

    Args:
        loader: The user's loader, or a collection of loaders, which are gone through one after the other.
        rank: This process.
        world_size: Number of processes that share the data.
        workers: Worker processes; by default as many as `loader` has.
        divide_batch: Make batches so many times smaller.
        limit: Batches of the user's size at most, a loader.
        warn: Called with what a user has to know.
        stream_limit: Batches at most of a stream, whose end training sets; None where nothing is known to.

    Raises:
        ValueError: A loader is empty, an iterator that can be gone through only once, a stream without a known end, or
            one whose worker processes serve training.
    """
    settings = _Settings(rank, world_size, workers, divide_batch, limit, warn, stream_limit)
    first_index, loaders = 0, []
    for single in single_loaders(loader):
        own = _own_loader(single, settings, first_index)
        loaders.append(own)
        first_index += len(single.dataset) if own.batches is not None else 0
    if not loaders:
        raise ValueError(f"The loader is empty: a {type(loader).__name__} without loaders.")
    return loaders


@dataclass(frozen=True)
class _Settings:
    """Arguments of `own_loaders`."""

    rank: int
    world_size: int
    workers: int | None
    divide_batch: int
    limit: float
    warn: Callable[[str], None]
    stream_limit: float | None

    def batches_of(self, loader: DataLoader) -> RankBatches | GivenBatches:
        return batches_of(loader, self.rank, self.world_size, self.divide_batch, self.limit, self.warn)

    def limit_of(self, stream: Any) -> float:
        """Batches at most of a stream.

        Raises:
            ValueError: Nothing gives it an end.
        """
        length = _length(stream)
        ends = [end for end in (length, self.stream_limit) if end is not None]
        if not ends and self.limit == math.inf:
            name = type(getattr(stream, "dataset", stream)).__name__
            raise ValueError(
                f"Expected data with an end, got the stream {name} without a length, and no epoch of training has "
                "shown how many batches it takes. Give it a __len__, or the trainer limit_train_batches=... or "
                "max_steps=...."
            )
        return min(self.limit, *ends) if ends else self.limit


def _own_loader(loader: Any, settings: _Settings, first_index: int) -> OwnLoader:
    if not isinstance(loader, DataLoader):
        if hasattr(loader, "__next__"):
            raise ValueError(
                f"Expected a loader that can be gone through again, got the iterator {type(loader).__name__}, whose "
                "batches a look would take from training. Pass an object whose __iter__ starts anew, such as a "
                "DataLoader."
            )
        made = loader if is_without_state(loader) else Isolated(loader)
        return OwnLoader(made, limit=settings.limit_of(loader))
    if not _has_torchs_machinery(loader):
        return _with_own_machinery(loader, settings)
    if isinstance(loader.dataset, IterableDataset):
        size = loader.batch_size and max(1, loader.batch_size // settings.divide_batch)
        # In smaller batches, what the last ones would drop is not what training drops.
        drop_last = loader.drop_last and size == loader.batch_size
        made = DataLoader(loader.dataset, batch_size=size, drop_last=drop_last, **_kept(loader, settings.workers))
        limit = settings.limit_of(loader) * (loader.batch_size / size if loader.batch_size and size else 1)
        return OwnLoader(made if made.num_workers else Isolated(made), limit=limit)
    batches = settings.batches_of(loader)
    return OwnLoader(_sequential(loader, batches, settings.workers), batches, first_index=first_index)


def _sequential(loader: DataLoader, batches: RankBatches | GivenBatches, workers: int | None) -> Any:
    """A loader of torch's own machinery that gives these batches."""
    dataset, known = loader.dataset, loader.collate_fn is default_collate and is_without_state(loader.dataset)
    batched = loader.batch_sampler is not None
    if batched and type(dataset) is TensorDataset and known and not loader.pin_memory:
        return TensorBatches(dataset, batches)
    made: DataLoader
    if batched:
        made = DataLoader(dataset, batch_sampler=batches, **_kept(loader, workers))
    else:
        made = DataLoader(dataset, batch_size=None, sampler=_items(loader, batches), **_kept(loader, workers))
    return made if made.num_workers or known else Isolated(made)


def _items(loader: DataLoader, batches: RankBatches | GivenBatches) -> Any:
    """What a dataset that gives whole batches is asked for: lists of indices, or one index each."""
    return batches if isinstance(loader.sampler, BatchSampler) else [batch[0] for batch in batches]


def _kept(loader: DataLoader, workers: int | None) -> dict[str, Any]:
    """Settings of a loader that one's own has too."""
    kept: dict[str, Any] = {
        "collate_fn": loader.collate_fn,
        "num_workers": loader.num_workers if workers is None else workers,
        "pin_memory": loader.pin_memory,
        "timeout": loader.timeout if workers is None else 0,
        "worker_init_fn": loader.worker_init_fn,
        "generator": torch.Generator().manual_seed(0),
    }
    if kept["num_workers"]:
        kept |= {"multiprocessing_context": loader.multiprocessing_context, "prefetch_factor": loader.prefetch_factor}
    return kept


def _has_torchs_machinery(loader: DataLoader) -> bool:
    definers = [next(kind for kind in type(loader).__mro__ if name in vars(kind)) for name in _MACHINERY]
    return all(kind.__module__.partition(".")[0] in ("torch", "torchdata") for kind in definers)


def _with_own_machinery(loader: DataLoader, settings: _Settings) -> OwnLoader:
    """A loader that overrides how batches come about: a copy of it, over one's own batches."""
    running = [value for name, value in vars(loader).items() if isinstance(value, _BaseDataLoaderIter)]
    if any(isinstance(value, _MultiProcessingDataLoaderIter) for value in running if value is not loader._iterator):
        raise ValueError(
            f"Expected a loader whose batches can be read beside training, got a {type(loader).__name__} that keeps "
            "its worker processes in an iterator of its own, whose batches a look would take from training. Pass a "
            "DataLoader; persistent_workers=True keeps its workers too."
        )
    if any(value is not loader._iterator for value in running):
        return OwnLoader(Isolated(loader), limit=settings.limit_of(loader))
    own = copy.copy(loader)
    changed: dict[str, Any] = {"_iterator": None, "pin_memory": False, "persistent_workers": False}
    changed |= {"generator": torch.Generator().manual_seed(0)}
    if isinstance(loader.dataset, IterableDataset):
        limit = settings.limit_of(loader)
    else:
        batches = settings.batches_of(loader)
        changed |= {"sampler": _items(loader, batches)} if loader.batch_sampler is None else {"batch_sampler": batches}
        # A length of its own ends an epoch of training too.
        limit = settings.limit_of(loader) if type(loader).__len__ is not DataLoader.__len__ else math.inf
    # A DataLoader refuses to have them set.
    vars(own).update(changed)
    return OwnLoader(Isolated(own), limit=limit)


def _length(stream: Any) -> int | None:
    try:
        return len(stream)
    except (TypeError, NotImplementedError, AttributeError):
        return None


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
