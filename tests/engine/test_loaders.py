"""Looks through the loaders that people have: what batches look like, where samples come from, what targets are."""

import random
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)

from nc_callbacks import NeuralCollapse
from nc_callbacks.probe.batches import INPUT_KEYS, TARGET_KEYS
from tests import reference
from tests.callbacks.common import COUNTS, Classifier, K, loader, samples, trainer, whole_set

X, Y = samples()
NAMES = ("nc1", "nc2_etf", "nc3", "nc4", "ncc_accuracy", "accuracy")


def assert_whole(callback, model, data=(X, Y), split="train", train=None, place=""):
    """The look found each of these samples once."""
    expected = whole_set(model, data, train or data)
    for name in NAMES:
        found = callback.latest[f"nc/{split}/{name}{place}"]
        assert found == pytest.approx(expected[name], rel=1e-5, abs=1e-7), (split, name)
    counts = torch.bincount(data[1], minlength=K).tolist()
    assert callback.latest[f"nc/{split}/counts{place}"].tolist() == counts


@dataclass
class Sample:
    image: torch.Tensor
    label: torch.Tensor


class Pair(NamedTuple):
    features: torch.Tensor
    classes: torch.Tensor


class Items(Dataset):
    def __init__(self, make):
        self.make = make

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return self.make(X[i], Y[i])


class Stream(IterableDataset):
    """Worker w of n gives every n-th sample."""

    def __iter__(self):
        worker = get_worker_info()
        start, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return iter([(X[i], Y[i]) for i in range(start, len(X), step)])


class Reading(Classifier):
    """Reads its batches by `read`."""

    def __init__(self, read, **settings):
        super().__init__(**settings)
        self.read = read

    def training_step(self, batch, batch_idx):
        return super().training_step(self.read(batch), batch_idx)


class TestBatches:
    @pytest.mark.parametrize(
        ("make", "collate"),
        [
            (lambda x, y: (x, y), None),
            (lambda x, y: [x, y, "more"], None),
            (Pair, None),
            (Sample, lambda items: Sample(*(torch.stack([getattr(i, f) for i in items]) for f in ("image", "label")))),
            *[(lambda x, y, i=i, t=t: {"id": 0, t: y, i: x}, None) for i in INPUT_KEYS for t in TARGET_KEYS],
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
    @pytest.mark.parametrize("batch_size", [7, 16])
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


class TestLimits:
    @pytest.mark.parametrize(
        ("settings", "seen"),
        [
            ({"limit_train_batches": 3}, 48),
            ({"limit_train_batches": 0.4}, 32),
            ({"limit_train_batches": 1}, 16),
            ({"limit_train_batches": 1.0}, 80),
            ({"overfit_batches": 2}, 32),
        ],
    )
    def test_of_training(self, settings, seen):
        callback, model = NeuralCollapse(), Classifier()
        trainer(callback, max_epochs=2, **settings).fit(model, loader())
        assert_whole(callback, model, (X[:seen], Y[:seen]))

    def test_of_validation(self):
        class Model(Classifier):
            def validation_step(self, batch, batch_idx, dataloader_idx=0):
                super().validation_step(batch, batch_idx)

        callback, model = NeuralCollapse(splits=["val"]), Model()
        small, large = (10, 8, 6, 6), (40, 25, 20, 15)
        trainer(callback, limit_val_batches=0.5).fit(model, loader(), [loader(1, small), loader(2, large)])
        # Half of two batches of 16, half of seven.
        for place, (counts, seen) in enumerate(((small, 16), (large, 48))):
            x, y = samples(place + 1, counts)
            assert_whole(callback, model, (x[:seen], y[:seen]), "val", (X, Y), f"/dataloader_idx_{place}")

    def test_loaders_made_anew_each_epoch(self):
        class Growing(LightningDataModule):
            def train_dataloader(self):
                size = 40 + 20 * self.trainer.current_epoch
                return DataLoader(TensorDataset(X[:size], Y[:size]), 16, shuffle=True)

            def val_dataloader(self):
                return loader(1 + self.trainer.current_epoch, shuffle=False)

        callback, model = NeuralCollapse(splits=["train", "val"]), Classifier()
        trainer(callback, max_epochs=3, reload_dataloaders_every_n_epochs=1).fit(model, datamodule=Growing())
        assert [int(record["nc/train/counts"].sum()) for record in callback.history] == [40, 60, 80]
        assert_whole(callback, model)
        assert_whole(callback, model, samples(3), "val", (X, Y))


class TestTargets:
    @pytest.mark.parametrize(
        "make",
        [
            lambda y: nn.functional.one_hot(y, K),
            lambda y: nn.functional.one_hot(y, K).float() * 0.8 + 0.05,
            lambda y: y.int(),
            lambda y: y.to(torch.uint8),
        ],
        ids=["one-hot", "soft", "int32", "uint8"],
    )
    def test_labels(self, make):
        class Model(Classifier):
            def training_step(self, batch, batch_idx):
                y = batch[1].argmax(1) if batch[1].ndim == 2 else batch[1].long()
                return super().training_step((batch[0], y), batch_idx)

        callback, model = NeuralCollapse(), Model()
        trainer(callback).fit(model, DataLoader(TensorDataset(X, make(Y)), 16))
        assert_whole(callback, model)

    def test_an_ignored_class(self):
        targets = Y.clone()
        targets[::7] = -100
        keep = targets != -100
        callback, model = NeuralCollapse(), Classifier()
        trainer(callback).fit(model, DataLoader(TensorDataset(X, targets), 16))
        assert_whole(callback, model, (X[keep], Y[keep]))
        with pytest.raises(ValueError, match=r"targets must lie in 0…3 \(num_classes=4\), got \[-100\]"):
            trainer(NeuralCollapse(ignore_index=None)).fit(Classifier(), DataLoader(TensorDataset(X, targets), 16))
        callback, model = NeuralCollapse(ignore_index=3), Classifier()
        model.head.bias.data[3] = 5
        with pytest.warns(UserWarning, match="No train sample has class 3"):
            trainer(callback).fit(model, loader())
        assert callback.latest["nc/train/counts"].tolist() == pytest.approx([*COUNTS[:3], np.nan], nan_ok=True)
        with torch.no_grad():
            predicted = model.eval()(X).argmax(1)
        assert callback.latest["nc/train/accuracy"] == pytest.approx((predicted == Y)[Y != 3].sum() / sum(COUNTS[:3]))


class Language(Classifier):
    """The next token of sequences; features are hidden states, classes are tokens."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.body = nn.Sequential(nn.Embedding(K, 5), nn.Linear(5, 8), nn.Tanh())
        self.to(dtype)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]).flatten(0, 1), batch[1].flatten())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class TestSequences:
    # Tokens drawn at random have means that half precision tells apart to few digits.
    @pytest.mark.filterwarnings("ignore:nc1 is known to")
    @pytest.mark.parametrize("length", [5, K, 1], ids=["T = 5", "T = k", "T = 1"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("padded", [True, False])
    def test_positions_that_count_are_samples(self, length, dtype, padded):
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randint(K, (40, length + 1), generator=generator)
        inputs, targets = tokens[:, :-1], tokens[:, 1:].clone()
        if padded:
            targets[torch.rand(targets.shape, generator=generator) < 0.3] = -100
        callback, model = NeuralCollapse(), Language(dtype)
        trainer(callback).fit(model, DataLoader(TensorDataset(inputs, targets), 7, shuffle=True))
        with torch.no_grad():
            hidden = model.eval().body(inputs)
            logits = model.head(hidden)
        keep = (targets != -100).numpy()
        h, f, y = hidden.double().numpy()[keep], logits.double().numpy()[keep], targets.numpy()[keep]
        moments = reference.moments(h, y, K)
        nearest = reference.nearest_mean(h, moments.means)
        latest = callback.latest
        assert latest["nc/train/counts"].tolist() == np.bincount(y, minlength=K).tolist()
        if dtype is not torch.bfloat16:  # of which no digits are known
            assert latest["nc/train/nc1"] == pytest.approx(reference.nc1(moments.within, moments.means), rel=1e-4)
        assert latest["nc/train/nc2_etf"] == pytest.approx(
            reference.nc2_etf(reference.centred(moments.means)), rel=1e-4
        )
        assert latest["nc/train/accuracy"] == pytest.approx(np.mean(f.argmax(1) == y))
        assert latest["nc/train/ncc_accuracy"] == pytest.approx(np.mean(nearest == y))
        assert latest["nc/train/nc4"] == pytest.approx(np.mean(nearest != f.argmax(1)))
