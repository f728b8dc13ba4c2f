"""What a checkpoint keeps of a history: every number, the vectors of few looks, within a bound."""

import io
import math

import numpy as np
import pytest
import torch

from nc_callbacks.callbacks.history import MAX_ENTRIES, MAX_LOOKS, least_missed, log_spaced, packed, unpacked
from nc_callbacks.callbacks.look_recorder import LookRecorder
from nc_callbacks.metrics import METRICS, LogKey


def saved(state):
    """A state as a checkpoint gives it back, and its size."""
    file = io.BytesIO()
    torch.save(state, file)
    size = file.tell()
    file.seek(0)
    return torch.load(file, weights_only=True), size


def history_of(looks, size=4, every=1):
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "epoch": every * look,
            "step": 7 * look,
            "nc/train/counts": torch.rand(size, generator=generator),
            "nc/train/nc1": math.exp(-look),
        }
        for look in range(looks)
    ]


def equal(one, other):
    assert [set(record) for record in one] == [set(record) for record in other]
    for a, b in zip(one, other, strict=True):
        for key, value in a.items():
            assert type(value) is type(b[key]), key
            np.testing.assert_array_equal(value, b[key])


@pytest.mark.parametrize("looks", [0, 1, MAX_LOOKS])
def test_few_looks_come_back_whole(looks):
    history = history_of(looks)
    equal(unpacked(saved(packed(history))[0]), history)


def test_a_checkpoint_of_one_tensor_by_key_is_read():
    """As versions before saved them: rows and values of each key by themselves."""
    history = history_of(3)
    columns = {
        "epoch": (torch.arange(3, dtype=torch.int32), torch.tensor([0, 1, 2])),
        "step": (torch.arange(3, dtype=torch.int32), torch.tensor([0, 7, 14])),
        "nc/train/nc1": (torch.arange(3, dtype=torch.int32), torch.tensor([1.0, -1, -2], dtype=torch.float64)),
        "nc/train/counts": (
            torch.tensor([0, 2], dtype=torch.int32),
            torch.stack([history[look]["nc/train/counts"] for look in (0, 2)]),
        ),
    }
    expected = [{**record, "nc/train/nc1": nc1} for record, nc1 in zip(history, (1.0, -1.0, -2.0), strict=True)]
    del expected[1]["nc/train/counts"]
    equal(unpacked({"looks": 3, "columns": columns}), expected)


def test_a_number_more_is_no_tensor_more():
    """Saving a tensor takes 0.3 ms, and there is a checkpoint after each epoch."""

    def tensors(names):
        record = {"epoch": 0, "step": 0} | dict.fromkeys(names, 0.5) | {f"{name}s": torch.ones(3) for name in names}
        return sum(isinstance(part, torch.Tensor) for table in packed([record] * 5)["tables"] for part in table)

    assert tensors("ab") == tensors("abcdefgh") == 6


def test_numbers_of_every_look_and_vectors_of_few():
    history = history_of(500, every=2)
    found = unpacked(saved(packed(history))[0])
    for name in ("epoch", "step", "nc/train/nc1"):
        assert [record[name] for record in found] == [record[name] for record in history]
    kept = {i: record["nc/train/counts"] for i, record in enumerate(found) if "nc/train/counts" in record}
    assert [2 * look + 1 for look in kept] == log_spaced([record["epoch"] + 1 for record in history])
    assert len(kept) == MAX_LOOKS
    assert all(torch.equal(vector, history[look]["nc/train/counts"]) for look, vector in kept.items())


def test_what_is_not_finite_or_missing_in_some_looks():
    history = [
        {"epoch": 0, "step": 1, "a": math.nan},
        {"epoch": 1, "step": 2, "b": math.inf, "v": torch.tensor([1.0, math.nan])},
        {"epoch": 5, "step": 3, "a": -0.0},
    ]
    equal(unpacked(saved(packed(history))[0]), history)


def test_long_vectors_are_left_out_and_others_keep_their_precision():
    history = [
        {"epoch": 0, "step": 1, "long": torch.ones(MAX_ENTRIES + 1), "longest": torch.ones(MAX_ENTRIES).double()}
    ]
    (record,) = unpacked(packed(history))
    assert set(record) == {"epoch", "step", "longest"}
    assert record["longest"].dtype == torch.float64


def test_vectors_of_a_head_that_has_grown():
    history = [{"epoch": e, "step": e, "v": torch.full((3 if e < 2 else 5,), float(e))} for e in range(4)]
    found = unpacked(saved(packed(history))[0])
    assert ["v" in record for record in found] == [False, False, True, True]


def test_packing_what_was_unpacked_changes_nothing():
    """A run that is cut off again and again keeps the looks of one that was not."""
    history, whole = [], history_of(300)
    for start in range(0, 300, 7):
        history = unpacked(packed(history + whole[start : start + 7]))
    equal(history, unpacked(packed(whole)))


def test_histories_of_older_checkpoints():
    history = history_of(3)
    equal(unpacked(history), history)


@pytest.mark.parametrize("last", [1, 40, 41, 350, 1100])
def test_looks_that_stay_are_those_of_leaving_one_by_one(last):
    kept = []
    for epoch in range(1, last + 1):
        kept.append(epoch)
        if len(kept) > MAX_LOOKS:
            del kept[least_missed(kept)]
    assert log_spaced(range(1, last + 1)) == kept


@pytest.mark.slow
def test_checkpoint_of_a_long_run_is_bounded():
    """1,000 looks at 100 classes and 512 features with every number of the four callbacks: at most 2 MiB.

    Scores of out-of-distribution data apart, which are asked for.
    """
    k, p, generator = 100, 512, torch.Generator().manual_seed(0)
    sizes = {"class": (k,), "direction": (p,)}
    rows = [m for m in METRICS.values() if not (m.axis == "sample" or m.derived or m.name.startswith("ood_"))]
    recorder, histories = LookRecorder("unused"), {metric.callback: [] for metric in rows}
    for epoch in range(1000):
        records = {name: {"epoch": epoch, "step": epoch} for name in histories}
        for metric in rows:
            key = str(LogKey(metric.name, "train"))
            if metric.axis == "scalar":
                records[metric.callback][key] = float(torch.rand((), generator=generator))
            elif metric.axis in sizes:
                records[metric.callback][key] = torch.rand(sizes[metric.axis], generator=generator)
                recorder._of_histories.add(key)
            else:
                matrix = torch.rand(k, k, generator=generator)
                recorder._keep(key, epoch + 1, matrix + matrix.mT)
        for name, record in records.items():
            histories[name].append(record)
    states = {name: {"history": packed(history), "num_classes": k} for name, history in histories.items()}
    _, size = saved(states | {"LookRecorder": recorder.state_dict()})
    assert size <= 2 * 2**20
