"""Two, three and four gloo processes find what one finds in float64, also where weights are sharded."""

import pytest
import torch

from tests.engine.alone_script import fit_on_the_first
from tests.engine.odd_ranks_script import TROUBLES, fit
from tests.engine.ranks_script import COUNTS, data, latest
from tests.processes import on_ranks, python

OLD_TORCH = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 7)
FULLY_SHARD = pytest.mark.skipif(OLD_TORCH, reason="fully_shard asks for a GPU's streams in torch 2.6")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return latest("float64", 1, "epoch_end", "512MiB", tmp_path_factory.mktemp("one"))


def assert_equal(one, found, online=False):
    for single, several in zip(one, found, strict=True):
        assert single.keys() - several.keys() <= ({"nc/train/sqi_samples"} if online else set())
        for key, value in several.items():
            if key == "step":
                continue
            value, expected = (torch.as_tensor(v, dtype=torch.float64) for v in (value, single[key]))
            # A pair of scores that float32 exchanges is one of 1,003 at a threshold.
            atol = 2e-3 if "/ood_" in key else 1e-7
            torch.testing.assert_close(
                value, expected, equal_nan=True, rtol=1e-5, atol=atol, msg=lambda m, key=key: f"{key}: {m}"
            )


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_one_class_is_on_one_rank_only(processes):
    targets = data(0).dataset.tensors[1]
    assert torch.bincount(targets).tolist() == list(COUNTS)
    rare = [int((targets[rank::processes] == 4).sum()) for rank in range(processes)]
    assert rare == [4] + [0] * (processes - 1)


@pytest.mark.parametrize(
    ("strategy", "processes", "mode", "feature_cache"),
    [
        ("ddp", 2, "epoch_end", "512MiB"),
        pytest.param("ddp", 3, "epoch_end", "0", marks=pytest.mark.slow),
        pytest.param("ddp", 4, "epoch_end", "512MiB", marks=pytest.mark.slow),
        ("ddp", 3, "online", "512MiB"),
        pytest.param("fully_shard", 2, "epoch_end", "512MiB", marks=[FULLY_SHARD, pytest.mark.slow]),
        pytest.param("tensor_parallel", 2, "epoch_end", "512MiB", marks=pytest.mark.slow),
    ],
)
def test_ranks_find_what_one_process_finds_in_float64(one, strategy, processes, mode, feature_cache, tmp_path):
    for found in on_ranks(latest, processes, strategy, processes, mode, feature_cache, tmp_path):
        assert_equal(one, found, mode == "online")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_ranks_that_lightning_starts(one, strategy, tmp_path):
    command = ["-m", "tests.engine.ranks_script", strategy, "2", "epoch_end", "512MiB", tmp_path / "found.pt"]
    run = python(*command)
    assert run.returncode == 0, run.stderr[-3000:]
    assert_equal(one, torch.load(tmp_path / "found.pt", weights_only=True))


@pytest.mark.parametrize(
    "kind",
    [
        "ddp",
        pytest.param("stream", marks=pytest.mark.slow),
        pytest.param("fully_shard", marks=[FULLY_SHARD, pytest.mark.slow]),
    ],
)
def test_what_fails_on_one_rank_fails_on_all_and_ends_no_training(kind, tmp_path):
    looked = [TROUBLES.index(trouble) for trouble in ("measure", "memory", "no targets", "none")]
    train, val = data(0).dataset.tensors[1][:96], data(1).dataset.tensors[1][: 80 if kind == "fully_shard" else 144]
    of_first = train[:48] if kind == "stream" else train[::2]
    for rank, kept in enumerate(on_ranks(fit, 2, kind, str(tmp_path))):
        assert kept["epochs"] == looked
        assert not kept["counts"][TROUBLES.index("measure") + 1]
        for trouble, targets, val_targets in (
            ("memory", train, val),
            ("no targets", of_first, val[:40]),
            ("none", train, val),
        ):
            counts = kept["counts"][TROUBLES.index(trouble) + 1]
            assert counts["nc/train/counts"] == torch.bincount(targets, minlength=5).tolist()
            assert counts["nc/val/counts"] == torch.bincount(val_targets, minlength=5).tolist()
        told = [message for message in kept["warnings"] if "training goes on" in message]
        assert len(told) == 1
        assert ("OSError: the disk is gone" if rank == 1 else "it failed on another rank") in told[0]


def test_a_trainer_of_one_process_among_several():
    """As after a fit on several, where the first tests alone."""
    alone, _ = on_ranks(fit_on_the_first, 2, as_torchrun=False)
    assert alone["counts"] == torch.bincount(data(0).dataset.tensors[1]).tolist()
    assert alone["keys"] > 10
