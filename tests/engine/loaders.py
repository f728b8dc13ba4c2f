"""Batches, data and models of many makes, and the comparison of a look with the whole set."""

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch.utils.data import (
    Dataset,
    IterableDataset,
    get_worker_info,
)

from tests.callbacks.common import Classifier, K, samples, whole_set

X, Y = samples()
NAMES = ("nc1", "nc2_etf", "nc3", "nc4", "ncc_accuracy", "accuracy")


def assert_whole(callback, model, data=(X, Y), split="train", train=None, place=""):
    """The look found each of these samples once."""
    expected = whole_set(model, data, train or data)
    for name in NAMES:
        found = callback.latest[f"nc/{split}/{name}{place}"]
        assert found == pytest.approx(expected[name], rel=1e-5, abs=1e-7), (split, name)
    counts = torch.bincount(data[1], minlength=K).tolist()
    assert callback.latest[f"nc/{split}/counts{place}"].tolist() == counts


@dataclass
class Sample:
    image: torch.Tensor
    label: torch.Tensor


class Pair(NamedTuple):
    features: torch.Tensor
    classes: torch.Tensor


class Items(Dataset):
    def __init__(self, make):
        self.make = make

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return self.make(X[i], Y[i])


class Stream(IterableDataset):
    """Worker w of n gives every n-th sample."""

    def __iter__(self):
        worker = get_worker_info()
        start, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return iter([(X[i], Y[i]) for i in range(start, len(X), step)])


class Reading(Classifier):
    """Reads its batches by `read`."""

    def __init__(self, read, **settings):
        super().__init__(**settings)
        self.read = read

    def training_step(self, batch, batch_idx):
        return super().training_step(self.read(batch), batch_idx)
