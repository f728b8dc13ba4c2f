"""Two, three and four gloo processes find what one finds in float64, also where weights are sharded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.callbacks.ranks_script import COUNTS, data

ROOT = Path(__file__).parents[2]

OLD_TORCH = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 7)
FULLY_SHARD = pytest.mark.skipif(OLD_TORCH, reason="fully_shard asks for a GPU's streams in torch 2.6")


def run_script(name, *arguments):
    run = subprocess.run(
        [sys.executable, "-m", f"tests.callbacks.{name}", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr[-3000:]


def found(strategy, processes, mode, feature_cache, folder):
    run_script("ranks_script", strategy, processes, mode, feature_cache, folder / "found.pt")
    return torch.load(folder / "found.pt", weights_only=True)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return found("float64", 1, "epoch_end", "512MiB", tmp_path_factory.mktemp("one"))


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_one_class_is_on_one_rank_only(processes):
    targets = data(0).dataset.tensors[1]
    assert torch.bincount(targets).tolist() == list(COUNTS)
    rare = [int((targets[rank::processes] == 4).sum()) for rank in range(processes)]
    assert rare == [4] + [0] * (processes - 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "processes", "mode", "feature_cache"),
    [
        ("ddp", 2, "epoch_end", "512MiB"),
        ("ddp_spawn", 3, "epoch_end", "0"),
        ("ddp_spawn", 4, "epoch_end", "512MiB"),
        ("ddp_spawn", 3, "online", "512MiB"),
        pytest.param("fully_shard", 2, "epoch_end", "512MiB", marks=FULLY_SHARD),
        ("tensor_parallel", 2, "epoch_end", "512MiB"),
    ],
)
def test_ranks_find_what_one_process_finds_in_float64(one, strategy, processes, mode, feature_cache, tmp_path):
    for single, several in zip(one, found(strategy, processes, mode, feature_cache, tmp_path), strict=True):
        assert single.keys() - several.keys() <= ({"nc/train/sqi_samples"} if mode == "online" else set())
        for key, value in several.items():
            if key == "step":
                continue
            value, expected = (torch.as_tensor(v, dtype=torch.float64) for v in (value, single[key]))
            torch.testing.assert_close(
                value, expected, equal_nan=True, rtol=1e-5, atol=1e-7, msg=lambda m, key=key: f"{key}: {m}"
            )


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp_spawn", pytest.param("fully_shard", marks=FULLY_SHARD)])
def test_a_loader_that_raises_on_one_rank_ends_no_training(strategy, tmp_path):
    run_script("odd_ranks_script", strategy, tmp_path)
    for rank in range(2):
        kept = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert kept["epochs"] == [1, 2]
        targets = data(0).dataset.tensors[1][:96]
        assert kept["counts"]["nc/train/counts"] == torch.bincount(targets, minlength=5).tolist()
        told = [message for message in kept["warnings"] if "training goes on" in message]
        assert len(told) == 1
        assert ("OSError: the disk is gone" if rank == 1 else "it failed on another rank") in told[0]
        if strategy == "ddp_spawn":
            # Streams of 40 and 104 samples: every batch of either counts.
            streamed = data(1).dataset.tensors[1][:144]
            assert kept["counts"]["nc/val/counts"] == torch.bincount(streamed, minlength=5).tolist()
