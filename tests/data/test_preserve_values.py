"""Collections and arrays that reading data changes are put back."""

from collections import Counter, OrderedDict, defaultdict, deque

import numpy as np
import pytest
import torch

from nc_callbacks.data.preserve import preserved
from tests.data.common import Data


class TestCollections:
    @pytest.mark.parametrize(
        ("held", "change"),
        [
            ([3, 1, 2], lambda c: (c.sort(), c.append(9))),
            ({"b": 1, "a": 2}, lambda c: (c.pop("b"), c.update(b=3, z=0))),
            ({3, 1}, lambda c: (c.remove(3), c.add(7))),
            (deque([1, 2, 3], maxlen=3), lambda c: c.append(4)),
            (OrderedDict(b=1, a=2), lambda c: c.move_to_end("b")),
            (Counter("aab"), lambda c: c.update("abc")),
            (defaultdict(list, x=1), lambda c: c["new"]),
        ],
        ids=["list", "dict", "set", "deque", "OrderedDict", "Counter", "defaultdict"],
    )
    def test_contents_and_order(self, held, change):
        before = list(held.items()) if isinstance(held, dict) else list(held)
        data = Data(lambda self: change(self.held), held=held)
        with preserved(data):
            data[0]
            assert before != (list(held.items()) if isinstance(held, dict) else list(held))
        assert data.held is held
        assert before == (list(held.items()) if isinstance(held, dict) else list(held))
        assert getattr(held, "maxlen", 3) == 3

    def test_collections_in_collections(self):
        data = Data(lambda self: self.tree["leaves"][0].append(1), tree={"leaves": ([], [])})
        with preserved(data):
            data[0]
        assert data.tree == {"leaves": ([], [])}

    def test_what_refuses_to_be_changed_is_left_alone(self):
        class Frozen(dict):
            def refuse(self, *_, **__):
                raise TypeError("frozen")

            clear = update = __setitem__ = refuse

        counting = Data(lambda self: setattr(self, "reads", self.reads + 1), settings=Frozen(a=1), reads=0)
        with preserved(counting):
            counting[0]
        assert counting.reads == 0

    def test_the_order_of_a_set_that_was_only_read(self):
        held = set(range(0, 640, 16))
        held -= set(range(16, 640, 32))
        before = list(held)
        data = Data(lambda self: self.held, held=held)
        with preserved(data):
            data[0]
        assert list(held) == before


class TestArrays:
    @pytest.mark.parametrize(
        "array",
        [
            np.arange(6.0),
            np.array(["a", "b"]),
            np.array([1.0, np.nan]),
            torch.arange(6),
            torch.tensor([True, False]),
            torch.ones(3, requires_grad=True),
            torch.eye(3).T[1:],
        ],
        ids=["numpy", "strings", "nan", "torch", "bool", "gradient", "view"],
    )
    def test_small_ones_in_place(self, array):
        before = array.detach().clone() if isinstance(array, torch.Tensor) else array.copy()

        def read(self):
            with torch.no_grad():
                self.array[...] = "z" if str(array.dtype).startswith("<U") else 0

        data = Data(read, array=array)
        with preserved(data):
            data[0]
        assert data.array is array
        assert str(before.tolist()) == str(array.tolist())

    def test_large_ones_are_neither_copied_nor_touched(self, monkeypatch):
        class Watched(np.ndarray):
            copied = 0

            def copy(self, *args, **kwargs):
                type(self).copied += 1
                return super().copy(*args, **kwargs)

        large, small = np.zeros(2**14).view(Watched), np.zeros(4).view(Watched)
        data = Data(lambda self: (self.large.fill(1), self.small.fill(1)), large=large, small=small)
        with preserved(data):
            data[0]
        assert Watched.copied == 1
        assert (large == 1).all()
        assert (small == 0).all()

    def test_all_arrays_together_are_bounded(self):
        data = Data(lambda self: [array.fill(1) for array in self.arrays], arrays=[np.zeros(2**13) for _ in range(300)])
        with preserved(data):
            data[0]
        kept = sum(array[0] == 0 for array in data.arrays)
        assert kept * 2**16 == 16 * 2**20

    def test_a_long_list_of_samples_is_data(self):
        samples = list(range(20_000))
        data = Data(lambda self: self.samples.append(0), samples=samples)
        with preserved(data):
            data[0]
        assert len(samples) == 20_001
