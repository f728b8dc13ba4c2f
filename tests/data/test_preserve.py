"""Data that changes itself when it is read is put back; what is opened when first read stays."""

import functools
import io
import random
from collections import deque

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import ChainDataset, ConcatDataset, Dataset, IterableDataset, Subset

from nc_callbacks.data.preserve import preserved
from tests.data.common import Compose, Data, Jitter, twice


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
