"""On a GPU each operation is a launch: how many an update makes, and what is left out once all classes have samples."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nc_callbacks import ClassStatistics
from nc_callbacks.statistics import two_parts
from nc_callbacks.statistics.seen import AllSeen

VIEWS = ("slice", "view", "detach", "t", "narrow", "split", "select", "empty", "empty_like", "new_empty")


class Launches(TorchDispatchMode):
    """Counts operations that are more than views."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function).split(".")[1]
        self.counts.update([] if name in VIEWS else [name])
        return function(*args, **(kwargs or {}))


def on_meta(k: int, p: int, n: int, **settings: Any) -> tuple[ClassStatistics, Tensor, Tensor]:
    """Meta goes the way of a GPU, without numbers."""
    y = torch.zeros(n, dtype=torch.long, device="meta")
    return ClassStatistics(k, **settings).to("meta"), torch.empty(n, p, device="meta"), y


@pytest.mark.parametrize("ignore_index", [None, -100])
def test_a_batch_that_waits_is_two_copies(ignore_index: int | None) -> None:
    statistics, x, y = on_meta(10, 32, 100, ignore_index=ignore_index)
    statistics.update(x, y)
    with Launches() as launches:
        for _ in range(5):
            statistics.update(x, y)
    assert launches.counts == {"copy_": 10}


def test_the_end_of_a_block_takes_few_launches_whatever_its_size() -> None:
    """1,024² products end a block after eight batches of 4,096; on a CPU that goes in 16 strips of five operations."""
    statistics, x, y = on_meta(10, 1_024, 4_096)
    for _ in range(33):
        statistics.update(x, y)
    with Launches() as launches:
        for _ in range(8):
            statistics.update(x, y)
        statistics.settle()
    assert launches.counts["addmm_"] == 5
    # Two for each batch and 56 for each time that those which wait are added.
    assert sum(launches.counts.values()) < 8 * 2 + 5 * 56 + 16 * 5 / 2


def test_outside_0_to_k_is_counted_when_rows_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: rows wait before their targets are looked at, and whatever reads the state has looked."""
    monkeypatch.setattr(ClassStatistics, "_counted", lambda self, x, y: (x, y))
    add = ClassStatistics._add

    def as_on_a_device(self: ClassStatistics, x: Tensor, y: Tensor) -> None:
        y, ignored = self._in_range(y)
        assert (ignored is None) == (self.ignore_index is None)
        keep = torch.ones_like(y, dtype=torch.bool) if ignored is None else ~ignored
        add(self, x[keep], y[keep])

    monkeypatch.setattr(ClassStatistics, "_add", as_on_a_device)
    statistics = ClassStatistics(3, ignore_index=-1)
    statistics.update(torch.ones(4, 2), torch.tensor([0, 5, -1, -7]))
    statistics.update(torch.ones(2, 2), torch.tensor([2, -1]))
    assert int(statistics.invalid) == 2
    assert statistics.counts.tolist() == [2, 0, 2]
    with pytest.raises(ValueError, match=r"2 targets lie outside 0…2"):
        statistics.compute()


def test_nothing_changes_where_new_classes_are_no_longer_looked_for() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = 5 + torch.randn(600, 4, generator=generator), torch.arange(600) % 3
    plain = ClassStatistics(3)
    plain.update(x[:300], y[:300])
    plain.settle()
    known = copy.deepcopy(plain)
    known._all_seen._known = True
    for statistics in (plain, known):
        statistics.update(x[300:], y[300:])
    assert known._all_seen.is_known()
    assert not plain._all_seen.is_known()
    for name, value in plain.metric_state.items():
        assert torch.equal(value, known.metric_state[name]), name


def test_what_was_known_of_the_classes_ends_with_their_counts() -> None:
    """After a reset a class may be new again, and gets its shift; so in a copy that another process makes."""
    statistics = ClassStatistics(2)
    statistics._all_seen._known = True
    statistics.reset()
    assert not statistics._all_seen.is_known()
    x, y = torch.tensor([[1e6, 1.0], [1e6, 3.0], [-1e6, 0.0], [-1e6, 1.0]]), torch.tensor([0, 0, 1, 1])
    statistics.update(x, y)
    statistics.settle()
    assert statistics.shift.tolist() == [[1e6, 2.0], [-1e6, 0.5]]
    statistics._all_seen._known = True
    assert not copy.deepcopy(statistics)._all_seen.is_known()


@pytest.mark.parametrize("strip", [1, 7, 2**24])
def test_the_end_of_a_block_keeps_all_digits_in_strips_of_any_size(strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_parts, "_STRIP", strip)
    generator = torch.Generator().manual_seed(0)
    earlier, block = 1e6 * torch.randn(5, 3, generator=generator), torch.randn(5, 3, generator=generator)
    both = earlier.double() + block.double()
    two_parts.end_block(block, earlier)
    assert torch.equal(earlier, both.float())
    torch.testing.assert_close(earlier.double() + block.double(), both, rtol=2**-46, atol=0)


class Arrival:
    """An event that comes when it is told to."""

    def __init__(self) -> None:
        self.has_come = False

    def query(self) -> bool:
        return self.has_come


@pytest.mark.parametrize("all_seen", [True, False])
def test_the_answer_counts_when_it_has_come(all_seen: bool) -> None:
    seen, arrival = AllSeen(), Arrival()
    seen._answer, seen._arrived = torch.tensor(all_seen), arrival  # type: ignore[assignment]
    assert not seen.is_known()
    arrival.has_come = True
    assert seen.is_known() is all_seen
    # Where it was no, it can be asked again; a CPU is asked nothing.
    assert seen._answer is None
    seen.ask(torch.tensor([1, 1]))
    assert seen.is_known() is all_seen
