"""The trainer's limits before it has counted batches itself."""

import math

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from nc_callbacks.engine.limits import batch_limit, stream_limit

QUIET = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu"}


def limited(limit, loader, split="train"):
    return batch_limit(Trainer(limit_train_batches=limit, limit_val_batches=0.25, **QUIET), split, loader)


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


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"max_steps": 3}, 3),
        ({"max_steps": 3, "accumulate_grad_batches": 4}, 12),
        ({"max_steps": 0}, 1),
        ({"max_epochs": 2}, math.inf),
        ({"max_epochs": -1}, None),
        ({"max_epochs": 2, "max_time": "00:01:00:00"}, None),
    ],
)
def test_what_ends_a_stream_before_the_first_epoch(settings, expected):
    assert stream_limit(Trainer(**settings, **QUIET), "train") == expected
    assert stream_limit(Trainer(**settings, **QUIET), "val") == math.inf
