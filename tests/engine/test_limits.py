"""The trainer's limits before it has counted batches itself."""

import math

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from nc_callbacks.engine.limits import batch_limit


def limited(limit, loader, split="train"):
    quiet = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    return batch_limit(Trainer(limit_train_batches=limit, limit_val_batches=0.25, **quiet), split, loader)


def batches(n):
    return DataLoader(TensorDataset(torch.zeros(n)))


@pytest.mark.parametrize(("limit", "expected"), [(3, 3), (1, 1), (1.0, math.inf), (0.5, 5), (0.25, 2)])
def test_numbers_and_shares(limit, expected):
    assert limited(limit, batches(10)) == expected


def test_each_split_has_its_own():
    assert limited(3, batches(12), "val") == 3
    assert limited(3, batches(12), "predict") == math.inf


def test_shares_are_of_the_longest_loader():
    assert limited(0.5, CombinedLoader([batches(4), batches(10)], "max_size")) == 5


def test_a_share_of_a_stream_is_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(3))

    assert limited(2, DataLoader(Stream())) == 2
    with pytest.raises(ValueError, match=r"limit_train_batches to be 1.0 or a number of batches .* got 0.5"):
        limited(0.5, DataLoader(Stream()))
