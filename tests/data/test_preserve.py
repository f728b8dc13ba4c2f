"""Data that changes itself when it is read is put back; what is opened when first read stays."""

import functools
import io
import random
from collections import Counter, OrderedDict, defaultdict, deque

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import ChainDataset, ConcatDataset, Dataset, IterableDataset, Subset

from nc_callbacks.data.preserve import preserved


class Data(Dataset):
    """Holds what it is given, and calls `read` with itself when it is read."""

    def __init__(self, read, **attributes):
        vars(self).update(attributes)
        self.read = read

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.read(self)


class Jitter:
    """A transform with a generator of its own."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        return x + self.rng.normal()

    def apply(self, x):
        return self(x)


class Compose:
    def __init__(self, *transforms):
        self.transforms = list(transforms)

    def __call__(self, x):
        return functools.reduce(lambda value, transform: transform(value), self.transforms, x)


def twice(data, *roots):
    """What a read gives inside the context, and the same read after it."""
    with preserved(*(roots or (data,))):
        inside = [data[0] for _ in range(5)]
    return inside, [data[0] for _ in range(5)]


class TestGenerators:
    @pytest.mark.parametrize(
        ("generator", "draw"),
        [
            (lambda: torch.Generator().manual_seed(3), lambda g: torch.rand(2, generator=g).tolist()),
            (lambda: np.random.default_rng(3), lambda g: g.normal(size=2).tolist()),
            (lambda: np.random.Generator(np.random.MT19937(3)), lambda g: g.integers(9, size=2).tolist()),
            (lambda: np.random.RandomState(3), lambda g: g.randn(3).tolist()),
            (lambda: random.Random(3), lambda g: g.gauss(0, 1)),
        ],
        ids=["torch", "numpy", "MT19937", "RandomState", "random"],
    )
    def test_draw_the_same_after_as_inside(self, generator, draw):
        data = Data(lambda self: draw(self.rng), rng=generator())
        data[0]
        inside, after = twice(data)
        assert inside == after
        assert len(set(map(str, inside))) == 5

    @pytest.mark.parametrize(
        "hold",
        [
            lambda jitter: jitter,
            lambda jitter: Compose(Compose(jitter)),
            lambda jitter: {"train": [None, (jitter, 3)]},
            lambda jitter: deque([jitter]),
            lambda jitter: {jitter},
            lambda jitter: Compose(abs, jitter),
        ],
        ids=["attribute", "nested", "dict of list of tuple", "deque", "set", "beside a builtin"],
    )
    def test_in_nested_transforms(self, hold):
        jitter = Jitter()
        inside, after = twice(Data(lambda self: jitter(1.0), transform=hold(jitter)))
        assert inside == after
        assert jitter.calls == 5

    @pytest.mark.parametrize(
        "wrap",
        [functools.partial, lambda transform: transform.apply, lambda transform: lambda x: transform(x)],
        ids=["partial", "bound method", "closure"],
    )
    def test_behind_functions(self, wrap):
        inside, after = twice(Data(lambda self: self.transform(1.0), transform=wrap(Jitter())))
        assert inside == after

    def test_objects_of_classes_beside_the_dataset(self):
        class Store:
            def __init__(self):
                self.rng = random.Random(0)

        data = Data(lambda self: self.store.rng.random(), store=Store())
        for root in (data, ConcatDataset([Subset(data, [0])])):
            inside, after = twice(data, root)
            assert inside == after

    def test_in_subsets_and_concatenations(self):
        first = Data(lambda self: float(self.rng.normal()), rng=np.random.default_rng(0))
        second = Data(lambda self: float(torch.rand(1, generator=self.g)), g=torch.Generator())
        nested = Subset(ConcatDataset([Subset(Subset(first, [0, 1]), [0]), second]), [0, 1])
        for index in range(2):
            with preserved(nested):
                inside = [nested[index] for _ in range(3)]
            assert inside == [nested[index] for _ in range(3)]
            assert len(set(inside)) == 3

    def test_in_iterable_datasets(self):
        class Stream(IterableDataset):
            def __init__(self):
                self.rng = random.Random(1)
                self.epoch = 0

            def __iter__(self):
                self.epoch += 1
                return iter([self.rng.random() for _ in range(3)])

        stream = Stream()
        chained = ChainDataset([stream, stream])
        with preserved(chained):
            inside = list(chained)
        assert stream.epoch == 0
        assert inside == list(chained)


class TestCounters:
    def test_numbers_strings_and_tuples(self):
        def read(self):
            self.reads, self.share, self.last, self.flag = self.reads + 1, self.share / 2, self.last + "x", True
            self.pair = (*self.pair, 1)

        data = Data(read, reads=3, share=1.0, last="", flag=False, pair=(0,))
        with preserved(data):
            data[0], data[1]
            assert data.reads == 5
        assert (data.reads, data.share, data.last, data.flag, data.pair) == (3, 1.0, "", False, (0,))

    def test_an_attribute_that_is_deleted(self):
        data = Data(lambda self: delattr(self, "fresh"), fresh=True)
        with preserved(data):
            data[0]
        assert data.fresh is True

    def test_a_counter_of_the_class(self):
        class Counting(Dataset):
            reads = 0

            def __getitem__(self, index):
                self.reads += 1

        data = Counting()
        with preserved(data):
            data[0]
        assert data.reads == 0

    @pytest.mark.parametrize(
        ("start", "anew"),
        [
            (np.int64(0), lambda count: count + 1),
            (np.zeros(1), lambda array: array + 1),
            (torch.tensor(0), lambda tensor: tensor + 1),
            ([0], lambda items: [*items, 1]),
            (random.Random(0), lambda rng: random.Random(9)),
        ],
        ids=["numpy scalar", "array", "tensor", "list", "generator"],
    )
    def test_an_attribute_that_is_set_anew(self, start, anew):
        data = Data(lambda self: setattr(self, "state", anew(self.state)), state=start)
        with preserved(data):
            data[0]
            assert data.state is not start
        assert data.state is start

    def test_a_generator_made_when_first_read(self):
        def read(self):
            self.rng = self.rng or random.Random(0)
            return self.rng.random()

        data = Data(read, rng=None)
        with preserved(data):
            first = data[0]
        assert first == data[0]


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


class TestWhatStays:
    def test_a_handle_opened_when_first_read(self):
        def read(self):
            self.handle = self.handle or io.StringIO("text")
            self.cache.setdefault("key", self.handle.read(1))

        data = Data(read, handle=None, cache={})
        with preserved(data):
            data[0]
        assert data.handle is not None
        assert not data.handle.closed
        assert data.handle.read(1) == "e"

    def test_what_is_new(self):
        data = Data(lambda self: setattr(self, "opened", object()))
        with preserved(data):
            data[0]
        assert hasattr(data, "opened")


class TestWalk:
    def test_cycles(self):
        data = Data(lambda self: setattr(self, "reads", self.reads + 1), reads=0)
        data.me, data.all = data, [data]
        data.all.append(data.all)
        with preserved(data):
            data[0]
        assert data.reads == 0
        assert data.all == [data, data.all]

    def test_after_an_exception(self):
        def read(self):
            self.reads += 1
            raise OSError("unreadable")

        data = Data(read, reads=0, rng=random.Random(1))
        with pytest.raises(OSError, match="unreadable"), preserved(data):
            data[0]
        assert data.reads == 0

    def test_trainers_and_models_are_not_entered(self):
        class Model(L.LightningModule):
            def __init__(self):
                super().__init__()
                self.net = nn.Linear(2, 2)
                self.steps = 0

        class Module(L.LightningDataModule):
            pass

        model, module = Model(), Module()
        module.steps = 0
        trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
        trainer.note = 0

        def read(self):
            self.model.steps += 1
            self.module.steps += 1
            self.trainer.note += 1
            nn.init.zeros_(self.model.net.weight)

        data = Data(read, model=model, module=module, trainer=trainer)
        with preserved(data):
            data[0]
        assert (model.steps, module.steps, trainer.note) == (1, 0, 1)
        assert (model.net.weight == 0).all()

    def test_many_roots_and_none(self):
        roots = [Data(lambda self: setattr(self, "reads", self.reads + 1), reads=0) for _ in range(3)]
        with preserved(*roots, None, "text", 3):
            for root in roots:
                root[0]
        assert [root.reads for root in roots] == [0, 0, 0]
        with preserved(generator := torch.Generator().manual_seed(3)):
            inside = torch.rand(2, generator=generator)
        assert torch.equal(inside, torch.rand(2, generator=generator))
