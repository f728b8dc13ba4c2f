"""Features of a backbone batch by batch, and the random sample of a stream."""

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nc_callbacks.transfer.features import FeatureSample, as_rows, device_of, feature_batches


def streamed(seed=0, size=50, n=2000, batch=37):
    sample = FeatureSample(size, seed)
    for rows in torch.arange(n).split(batch):
        sample.update(rows[:, None].double(), rows)
    return sample.read()


def test_sample_is_without_replacement_and_keeps_rows_and_targets_together():
    features, targets = streamed()
    assert len(targets.unique()) == len(targets) == 50
    assert torch.equal(features[:, 0].long(), targets)


def test_sample_is_uniform():
    # Each of the 40 blocks of 50 rows is expected to hold 50 · 200 / 40 = 250 of all draws.
    draws = torch.cat([streamed(seed)[1] for seed in range(200)])
    blocks = torch.bincount(draws // 50, minlength=40).double()
    chi_squared = ((blocks - 250).square() / 250).sum()
    assert chi_squared < 80  # 39 degrees of freedom: exceeded once in ten thousand times


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", [0, 1, 42])
def test_sample_does_not_follow_the_seed_of_the_data(seed, dtype):
    x = torch.rand(2000, 1, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    sample = FeatureSample(200)
    sample.update(x, torch.zeros(2000, dtype=torch.long))
    # The mean of 200 such numbers is within 5 standard errors of ½.
    assert abs(float(sample.read()[0].mean()) - 0.5) < 5 / math.sqrt(12 * 200)


def test_short_streams_are_kept_whole_and_the_global_state_is_left_alone():
    state = torch.get_rng_state()
    assert streamed(size=500, n=100)[1].sort().values.tolist() == list(range(100))
    assert torch.equal(torch.get_rng_state(), state)


def test_memory_is_bounded():
    sample = FeatureSample(10)
    for n in 100 * (7, 50):
        sample.update(torch.zeros(n, 3), torch.zeros(n, dtype=torch.long))
        assert sum(len(part[0]) for part in sample._parts) <= 20


def test_empty_sample():
    features, targets = FeatureSample().read()
    assert (features.shape, targets.shape) == ((0, 0), (0,))


def test_rows():
    x, y = as_rows(torch.zeros(4, 3, 1, 1), torch.zeros(4, dtype=torch.long))
    assert (x.shape, y.shape) == ((4, 3), (4,))
    x, y = as_rows(torch.zeros(4, 5, 3), torch.zeros(4, 5, dtype=torch.long))
    assert (x.shape, y.shape) == ((20, 3), (20,))
    with pytest.raises(ValueError, match="one row of features a target"):
        as_rows(torch.zeros(4, 3), torch.zeros(5, dtype=torch.long))


def test_device_of():
    assert device_of(nn.Identity()) == torch.device("cpu")
    assert device_of(nn.Linear(2, 2, device="meta")) == torch.device("meta")
    assert device_of(nn.BatchNorm1d(2, affine=False, device="meta")) == torch.device("meta")


@pytest.mark.parametrize("collate", [None, lambda rows: tuple(map(torch.stack, zip(*rows, strict=True)))])
def test_batches_are_the_loaders_in_order_and_whole(collate):
    x, y = torch.randn(23, 4), torch.arange(23) % 3
    loader = DataLoader(TensorDataset(x, y), batch_size=5, shuffle=True, drop_last=True, collate_fn=collate)
    batches = list(feature_batches(nn.Identity(), loader))
    assert [len(targets) for _, targets in batches] == [5, 5, 5, 5, 3]
    assert torch.equal(torch.cat([features for features, _ in batches]), x)
    assert torch.equal(torch.cat([targets for _, targets in batches]), y)


def test_a_dataset_of_ones_own_is_read_as_it_says():
    class Doubled(TensorDataset):
        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            return 2 * x, y

    x, y = torch.randn(7, 4), torch.arange(7)
    ((features, _),) = feature_batches(nn.Identity(), DataLoader(Doubled(x, y), batch_size=7))
    assert torch.equal(features, 2 * x)
