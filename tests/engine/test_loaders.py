"""Looks through the loaders that people have: what batches look like, where samples come from, what targets are."""

import random

import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from nc_callbacks import NeuralCollapse
from nc_callbacks.probe.batches import INPUT_KEYS, TARGET_KEYS
from tests.callbacks.common import Classifier, loader, samples, trainer, whole_set
from tests.engine.loaders import Items, Pair, Reading, Sample, Stream, X, Y, assert_whole

# Each at least once; tests/probe/test_batches.py has every pair.
KEYS = list(zip(INPUT_KEYS, TARGET_KEYS, strict=False)) + [("x", t) for t in TARGET_KEYS[len(INPUT_KEYS) :]]


class TestBatches:
    @pytest.mark.parametrize(
        ("make", "collate"),
        [
            (lambda x, y: (x, y), None),
            (lambda x, y: [x, y, "more"], None),
            (Pair, None),
            (Sample, lambda items: Sample(*(torch.stack([getattr(i, f) for i in items]) for f in ("image", "label")))),
            *[(lambda x, y, i=i, t=t: {"id": 0, t: y, i: x}, None) for i, t in KEYS],
        ],
    )
    def test_are_read(self, make, collate):
        def read(batch):
            if isinstance(batch, dict):
                return next(batch[k] for k in INPUT_KEYS if k in batch), next(
                    batch[k] for k in TARGET_KEYS if k in batch
                )
            return (batch.image, batch.label) if isinstance(batch, Sample) else batch

        callback, model = NeuralCollapse(), Reading(read)
        trainer(callback).fit(model, DataLoader(Items(make), 16, shuffle=True, collate_fn=collate))
        assert_whole(callback, model)

    def test_an_iterable_that_is_no_data_loader(self):
        class Batches:
            def __iter__(self):
                return iter([(X[i : i + 16], Y[i : i + 16]) for i in range(0, 80, 16)])

            def __len__(self):
                return 5

        callback, model = NeuralCollapse(), Classifier()
        trainer(callback, max_epochs=2).fit(model, Batches())
        assert_whole(callback, model)

    def test_a_loader_that_can_be_gone_through_once_is_refused(self):
        batches = ((X[i : i + 16], Y[i : i + 16]) for i in range(0, 80, 16))
        with pytest.raises(ValueError, match="Expected a loader that can be gone through again, got the iterator gen"):
            trainer(NeuralCollapse()).fit(Classifier(), batches)

    @pytest.mark.parametrize(
        "kept",
        [0, 1],
        ids=["a later batch", "the first batch too"],
    )
    def test_that_batch_fn_leaves_out(self, kept):
        def batch_fn(batch):
            return batch[0], batch[1] if batch[1].sum() % 2 == kept else None

        callback, model = NeuralCollapse(batch_fn=batch_fn), Classifier()
        trainer(callback).fit(model, loader(shuffle=False))
        rows = torch.cat([part for part in torch.arange(80).split(16) if Y[part].sum() % 2 == kept])
        assert 0 < len(rows) < 80
        assert_whole(callback, model, (X[rows], Y[rows]))


class TestSources:
    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("batch_size", [7, pytest.param(16, marks=pytest.mark.slow)])
    def test_iterable_dataset(self, workers, batch_size):
        callback, model = NeuralCollapse(), Classifier()
        trainer(callback, max_epochs=2).fit(model, DataLoader(Stream(), batch_size, num_workers=workers))
        assert_whole(callback, model)

    def test_iterable_validation_set_online(self):
        callback, model = NeuralCollapse(mode="online", splits=["val"]), Classifier()
        trainer(callback).fit(model, loader(1), DataLoader(Stream(), 16))
        assert callback.latest["nc/val/nc1"] == pytest.approx(whole_set(model, (X, Y), (X, Y))["nc1"], rel=1e-5)

    @pytest.mark.parametrize("mode", ["min_size", "max_size", "max_size_cycle"])
    @pytest.mark.parametrize("collection", [list, dict])
    def test_several_training_loaders(self, mode, collection):
        class Several(Classifier):
            def training_step(self, batch, batch_idx):
                parts = batch.values() if isinstance(batch, dict) else batch
                return sum(super(Several, self).training_step(part, 0) for part in parts if part is not None)

        parts = [range(20), range(20, 75)] if collection is list else [range(56), range(56, 75)]
        loaders = [DataLoader(TensorDataset(X[list(part)], Y[list(part)]), 8, shuffle=True) for part in parts]
        loaders = loaders if collection is list else dict(zip("ab", loaders, strict=True))
        callback, model = NeuralCollapse(), Several()
        trainer(callback).fit(model, CombinedLoader(loaders, mode))
        assert_whole(callback, model, (X[:75], Y[:75]))

    def test_a_plain_list_of_loaders(self):
        class Several(Classifier):
            def training_step(self, batch, batch_idx):
                return super().training_step(batch[0], 0) + super().training_step(batch[1], 0)

        callback, model = NeuralCollapse(), Several()
        trainer(callback).fit(model, [loader(0), loader(1)])
        both = tuple(torch.cat(pair) for pair in zip(samples(0), samples(1), strict=True))
        assert_whole(callback, model, both)

    @pytest.mark.parametrize(
        "settings",
        [
            {"sampler": WeightedRandomSampler(torch.arange(80.0) + 1, 200), "batch_size": 16},
            {"sampler": RandomSampler(range(80), replacement=True, num_samples=30), "batch_size": 16},
            {"shuffle": True, "drop_last": True, "batch_size": 30},
            {"batch_sampler": BatchSampler(RandomSampler(range(80)), 12, drop_last=True)},
        ],
        ids=["weighted", "with replacement", "drop_last", "batch sampler"],
    )
    def test_samplers_of_a_whole_dataset(self, settings):
        callback, model = NeuralCollapse(), Classifier()
        trainer(callback).fit(model, DataLoader(TensorDataset(X, Y), **settings))
        assert_whole(callback, model)

    def test_samplers_of_a_part(self):
        chosen = torch.arange(0, 80, 2)
        for data in (
            DataLoader(TensorDataset(X, Y), 16, sampler=SubsetRandomSampler(chosen.tolist())),
            DataLoader(Subset(TensorDataset(X, Y), chosen.tolist()), 16, shuffle=True),
        ):
            callback, model = NeuralCollapse(), Classifier()
            trainer(callback).fit(model, data)
            assert_whole(callback, model, (X[chosen], Y[chosen]))

    def test_a_batch_sampler_of_ones_own(self):
        class Pairs:
            def __iter__(self):
                return iter([[i, 79 - i] for i in range(40)])

            def __len__(self):
                return 40

        callback, model = NeuralCollapse(), Classifier()
        trainer(callback).fit(model, DataLoader(TensorDataset(X, Y), batch_sampler=Pairs()))
        assert_whole(callback, model)

    @pytest.mark.slow
    @pytest.mark.parametrize("settings", [{}, {"persistent_workers": True, "pin_memory": True, "prefetch_factor": 4}])
    def test_worker_processes(self, settings):
        callback, model = NeuralCollapse(), Classifier()
        trainer(callback, max_epochs=2).fit(model, loader(num_workers=2, **settings))
        assert_whole(callback, model)

    def test_the_users_generator_and_order(self):
        def run(*callbacks):
            class Recording(Classifier):
                def training_step(self, batch, batch_idx):
                    seen.append(batch[1].clone())
                    return super().training_step(batch, batch_idx)

            seen, generator = [], torch.Generator().manual_seed(5)
            trainer(*callbacks, max_epochs=2).fit(Recording(), loader(generator=generator))
            return torch.cat(seen), generator.get_state()

        for plain, watched in zip(run(), run(NeuralCollapse(splits=["train"])), strict=True):
            assert torch.equal(plain, watched)

    def test_a_collate_function_with_random_numbers_of_its_own(self):
        class Noisy:
            def __init__(self):
                self.rng = random.Random(0)

            def __call__(self, items):
                x, y = map(torch.stack, zip(*items, strict=True))
                return x + self.rng.gauss(0, 0.1), y

        def run(*callbacks):
            model = Classifier()
            torch.manual_seed(1)
            trainer(*callbacks, max_epochs=2).fit(model, loader(collate_fn=Noisy()))
            return model.head.weight

        assert torch.equal(run(), run(NeuralCollapse()))
