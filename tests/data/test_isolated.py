"""Reading in a process of its own: the same batches, nothing left behind."""

import os
import signal
import threading
from collections import namedtuple
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset, get_worker_info

from nc_callbacks.data.handles import can_be_forked, is_without_state
from nc_callbacks.data.isolated import Isolated

Pair = namedtuple("Pair", "x y")


@dataclass
class Sample:
    x: torch.Tensor
    y: int


class Given:
    """Gives what it is given, and counts."""

    def __init__(self, *batches):
        self.batches, self.rounds = batches, 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        self.rounds += 1
        yield from self.batches


TENSORS = {
    "float32": torch.randn(3, 4),
    "bfloat16": torch.randn(3).bfloat16(),
    "bool": torch.tensor([True, False]),
    "int64": torch.arange(5),
    "complex": torch.randn(2, dtype=torch.complex64),
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 3),
    "a view": torch.arange(12).view(3, 4).T[1:],
    "channels last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "sparse": torch.eye(3).to_sparse(),
    "larger than a pipe": torch.randn(300, 1000),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_arrive_as_they_are(name):
    tensor = TENSORS[name]
    given = Given(tensor)
    (found,) = Isolated(given)
    assert given.rounds == 0
    assert found.dtype == tensor.dtype
    assert found.shape == tensor.shape
    if name != "sparse":
        assert found.stride() == tensor.stride() or name == "empty"
        found.add_(0) if found.dtype != torch.bool else found.fill_(True)
        found = next(iter(Isolated(given)))
    assert torch.equal(
        found.to_dense() if name == "sparse" else found, tensor.to_dense() if name == "sparse" else tensor
    )


def test_structures_arrive_as_they_are():
    batches = [{"x": np.arange(3), "id": ["a"]}, Pair(1, torch.ones(2)), Sample(torch.zeros(1), 2), None, "text", [()]]
    found = list(Isolated(Given(*batches)))
    assert found[0]["x"].tolist() == [0, 1, 2]
    assert isinstance(found[1], Pair)
    assert isinstance(found[2], Sample)
    assert found[3:] == [None, "text", [()]]


def test_what_cannot_be_sent_is_read_here():
    class Local:
        pass

    given = Given(Local(), Local())
    assert [type(batch) for batch in Isolated(given)] == [Local, Local]
    assert given.rounds == 1


def test_what_a_forked_process_cannot_use_is_read_here():
    given = Given(1, 2)
    given.lock = threading.Lock()
    assert not can_be_forked(given)
    assert list(Isolated(given)) == [1, 2]
    assert given.rounds == 1


class Failing:
    def __init__(self, after):
        self.after = after

    def __iter__(self):
        yield from range(self.after)
        raise OSError("unreadable")


@pytest.mark.parametrize("after", [0, 2])
def test_errors_are_raised_as_they_are(after):
    found = []
    with pytest.raises(OSError, match="unreadable"):
        found.extend(Isolated(Failing(after)))
    assert found == list(range(after))


def test_errors_that_cannot_be_sent_are_told():
    class OwnError(Exception):
        pass

    class Failing:
        def __iter__(self):
            yield 1
            raise OwnError("unreadable")

    with pytest.raises(RuntimeError, match=r"^OwnError: unreadable"):
        list(Isolated(Failing()))


def test_an_interrupt_is_for_the_process_that_trains():
    class Interrupted:
        def __iter__(self):
            yield os.getpid()
            os.kill(os.getpid(), signal.SIGINT)
            yield "last"

    process, last = Isolated(Interrupted())
    assert process != os.getpid()
    assert last == "last"


def test_two_passes_draw_the_same_random_numbers_and_this_process_none():
    class Noise:
        def __iter__(self):
            yield torch.rand(2).tolist(), float(np.random.rand())  # noqa: NPY002

    state = torch.get_rng_state()
    assert list(Isolated(Noise())) == list(Isolated(Noise()))
    assert torch.equal(torch.get_rng_state(), state)


class Items(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, i):
        return i, get_worker_info() is not None


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_with_workers_of_its_own(workers):
    ((numbers, worked),) = Isolated(DataLoader(Items(), 6, num_workers=workers))
    assert numbers.tolist() == [0, 1, 2, 3, 4, 5]
    assert bool(worked.all()) is (workers == 1)


def test_length_is_that_of_what_is_gone_through():
    assert len(Isolated(Given(1, 2, 3))) == 3


def test_there_is_no_gpu_in_it(monkeypatch):
    class Using:
        def __iter__(self):
            yield os.getpid(), torch.cuda.is_available(), torch.accelerator.is_available()

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    ((process, *available),) = Isolated(Using())
    assert process != os.getpid()
    assert available == [False, False]


def test_open_files_take_one_place_each_there_too(tmp_path):
    class Opened:
        def __iter__(self):
            yield os.getpid(), len(os.listdir("/proc/self/fd"))

    counts = []
    for number in (0, 5):
        with ExitStack() as stack:
            for name in range(number):
                path = tmp_path / str(name)
                path.touch()
                stack.enter_context(path.open())
            ((process, count),) = Isolated(Opened())
        assert process != os.getpid()
        counts.append(count)
    assert counts[1] == counts[0] + 5


def test_places_in_open_files_stay(tmp_path):
    path = tmp_path / "lines"
    path.write_text("\n".join(map(str, range(100_000))))

    class Lines:
        def __init__(self):
            self.file = path.open()

        def __iter__(self):
            for _ in range(20_000):
                yield int(self.file.readline())

    lines = Lines()
    assert next(iter(lines)) == 0
    assert list(Isolated(lines)) == list(range(1, 20_001))
    assert list(lines) == list(range(1, 20_001))
    lines.file.close()


def test_files_that_are_written_stay_open(tmp_path):
    class Noting:
        def __init__(self):
            self.file = (tmp_path / "notes").open("w")

        def __iter__(self):
            self.file.write("read")
            self.file.flush()
            yield os.getpid()

    noting = Noting()
    (process,) = Isolated(noting)
    assert process != os.getpid()
    assert (tmp_path / "notes").read_text() == "read"
    noting.file.close()


def test_nothing_is_left_of_a_pass_that_is_broken_off(monkeypatch):
    class Endless:
        def __iter__(self):
            while True:
                yield torch.ones(1000)

    started, fork = [], os.fork
    monkeypatch.setattr(os, "fork", lambda: started.append(fork()) or started[-1])
    batches = iter(Isolated(Endless()))
    next(batches)
    batches.close()
    (pid,) = started
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_errors_that_are_kept_keep_no_pipe():
    before = len(os.listdir("/proc/self/fd"))
    kept = []
    for _ in range(3):
        with pytest.raises(OSError, match="unreadable") as caught:
            list(Isolated(Failing(2)))
        kept.append(caught)
    assert len(os.listdir("/proc/self/fd")) == before


def test_data_known_to_have_no_state():
    tensors = TensorDataset(torch.zeros(3))
    assert is_without_state(Subset(ConcatDataset([tensors, [1, 2]]), [0]))
    assert not is_without_state(Subset(Items(), [0]))
    assert not is_without_state(type("Own", (TensorDataset,), {})(torch.zeros(3)))
