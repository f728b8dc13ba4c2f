"""Two processes of which one has more: a batch, samples for its cache, out-of-distribution data."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from nc_callbacks import NeuralCollapse
from tests.callbacks.common import samples, trainer
from tests.engine.ranks_script import Still
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


def latest(processes: int, folder: Any, cache: int) -> dict[str, Any]:
    callback = NeuralCollapse(ood_loader=DataLoader(Outside(), 4), feature_cache=cache)
    run = trainer(
        callback,
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        default_root_dir=folder,
    )
    run.fit(Still(), DataLoader(TensorDataset(*samples(0, COUNTS)), 16))
    return callback.latest


@pytest.mark.parametrize("cache", [16 * BYTES, 2**20], ids=["room on the second rank alone", "room"])
def test_two_find_what_one_finds(tmp_path, cache):
    one = latest(1, tmp_path, 2**20)
    assert one["nc/train/counts"].tolist() == list(COUNTS)
    for found in on_ranks(latest, 2, 2, tmp_path, cache):
        assert found.keys() == one.keys()
        for key in one.keys() - {"step"}:
            value, expected = (torch.as_tensor(values, dtype=torch.float64) for values in (found[key], one[key]))
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")
