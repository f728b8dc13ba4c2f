"""Two processes of which one has more: a batch, samples for its cache, out-of-distribution data."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from nc_callbacks import NeuralCollapse
from tests.callbacks.common import samples, trainer
from tests.engine.ranks_script import Sharded, Still
from tests.engine.test_ranks import FULLY_SHARD
from tests.processes import on_ranks

COUNTS = (12, 10, 6, 3, 2)  # 33: in batches of 16, the first of two ranks has two, the second one and a surplus one
BYTES = 8 * 4 + 5 * 4 + 8
"""Of a sample in the cache: 8 features, 5 outputs, its label."""


class Outside(IterableDataset):
    """Two samples on the first of two ranks, 28 far from them on the second."""

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        x, y = samples(5, (6, 6, 6, 6, 6))
        x = x + 3 * (torch.arange(30) >= 2)[:, None]
        parts = {None: slice(0, 30), 0: slice(0, 2), 1: slice(2, 30)}
        part = parts[dist.get_rank() if dist.is_initialized() else None]
        return zip(x[part], y[part], strict=True)


class Broken(Outside):
    """200 samples, of which the second rank cannot read the ninth."""

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for number, sample in enumerate(zip(*samples(5, (40, 40, 40, 40, 40)), strict=True)):
            if number == 8 and dist.get_rank():
                raise OSError("the disk is gone")
            yield sample


def latest(strategy: str, folder: Any, cache: int) -> dict[str, Any]:
    callback = NeuralCollapse(ood_loader=DataLoader(Outside(), 4), feature_cache=cache)
    fit(strategy, folder, callback)
    return callback.latest


def forward_passes(folder: Any) -> int:
    """Of the look at data that cannot be read on the other rank."""
    return fit("ddp", folder, NeuralCollapse(ood_loader=DataLoader(Broken(), 4))).looks


def fit(strategy: str, folder: Any, callback: NeuralCollapse) -> Still:
    sharded, processes = strategy == "fully_shard", 1 if strategy == "auto" else 2
    model = Sharded() if sharded else Still()
    run = trainer(
        callback,
        devices=processes,
        strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1) if sharded else strategy,
        default_root_dir=folder,
    )
    run.fit(model, DataLoader(TensorDataset(*samples(0, COUNTS)), 16))
    return model


@pytest.mark.parametrize(
    ("strategy", "cache"),
    [
        pytest.param("ddp", 16 * BYTES, id="room on the second rank alone"),
        pytest.param("ddp", 2**20, id="room"),
        pytest.param("fully_shard", 2**20, marks=[FULLY_SHARD, pytest.mark.slow], id="sharded"),
    ],
)
def test_two_find_what_one_finds(tmp_path, strategy, cache):
    one = latest("auto", tmp_path, 2**20)
    assert one["nc/train/counts"].tolist() == list(COUNTS)
    for found in on_ranks(latest, 2, strategy, tmp_path, cache):
        assert found.keys() == one.keys()
        for key in one.keys() - {"step"}:
            value, expected = (torch.as_tensor(values, dtype=torch.float64) for values in (found[key], one[key]))
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")


def test_no_rank_goes_on_for_long_after_another_has_failed(tmp_path):
    """A few batches, and not all 50 of the first rank's stream."""
    assert on_ranks(forward_passes, 2, tmp_path)[0] < 20
