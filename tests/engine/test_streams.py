"""Streams, loaders with machinery of their own and limits: a look takes what an epoch of training takes."""

import itertools
import warnings

import pytest
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, TensorDataset

from nc_callbacks import CentredMeanInit, NeuralCollapse
from nc_callbacks.data.loader import own_loaders
from tests.callbacks.common import Classifier, loader, samples, trainer
from tests.engine.test_loaders import assert_whole

X, Y = samples()


class Endless(IterableDataset):
    def __iter__(self):
        return itertools.cycle(zip(X, Y, strict=True))


class Sized(Endless):
    def __len__(self):
        return 80


class EndlessBatches:
    """No DataLoader."""

    def __iter__(self):
        return itertools.cycle([(X[i : i + 16], Y[i : i + 16]) for i in range(0, 80, 16)])


class SizedBatches(EndlessBatches):
    def __len__(self):
        return 5


ENDLESS = {
    "stream": lambda: DataLoader(Endless(), 16),
    "stream with a worker": lambda: DataLoader(Endless(), 16, num_workers=1),
    "batches": EndlessBatches,
}


class TestWithoutAnEnd:
    @pytest.mark.parametrize("make", ENDLESS.values(), ids=ENDLESS)
    @pytest.mark.parametrize("settings", [{"max_steps": 5, "max_epochs": -1}, {"limit_train_batches": 5}])
    def test_no_more_batches_than_the_epoch(self, make, settings):
        callback, model = NeuralCollapse(), Classifier()
        trainer(callback, **settings).fit(model, make())
        assert_whole(callback, model)

    @pytest.mark.parametrize("make", [lambda: DataLoader(Sized(), 16), SizedBatches], ids=["stream", "batches"])
    def test_of_a_length(self, make):
        callback, model = NeuralCollapse(), Classifier()
        trainer(callback, CentredMeanInit(), max_epochs=2).fit(model, make())
        assert_whole(callback, model)

    def test_ended_by_time(self, monkeypatch):
        callback, model = NeuralCollapse(), Classifier()
        fit = trainer(callback, max_time="00:01:00:00", max_epochs=-1)
        # An hour is over after five steps.
        monkeypatch.setattr(Timer, "time_elapsed", lambda self, stage=None: 1e9 if fit.global_step >= 5 else 0.0)
        fit.fit(model, DataLoader(Endless(), 16))
        assert_whole(callback, model)

    def test_several_streams(self):
        class Several(Classifier):
            def training_step(self, batch, batch_idx):
                return sum(super(Several, self).training_step(part, batch_idx) for part in batch)

        callback, model = NeuralCollapse(), Several()
        loaders = CombinedLoader([DataLoader(Endless(), 16), EndlessBatches()], "min_size")
        trainer(callback, limit_train_batches=5).fit(model, loaders)
        assert callback.latest["nc/train/counts"].sum() == 160

    @pytest.mark.parametrize("make", ENDLESS.values(), ids=ENDLESS)
    def test_centred_mean_init_takes_the_batches_of_max_steps(self, make):
        start, expected = Classifier(), Classifier()
        trainer(CentredMeanInit(), max_steps=5, max_epochs=-1, limit_val_batches=0).fit(_frozen(start), make())
        trainer(CentredMeanInit()).fit(_frozen(expected), loader(shuffle=False))
        assert torch.allclose(start.head.weight, expected.head.weight, rtol=1e-5)

    def test_centred_mean_init_refuses_a_stream_that_nothing_ends(self):
        with pytest.raises(ValueError, match="Expected data with an end, got the stream Endless without a length"):
            trainer(CentredMeanInit(), max_time="00:01:00:00", max_epochs=-1).fit(
                Classifier(), DataLoader(Endless(), 16)
            )

    def test_samples_of_accumulated_batches(self):
        callback, model = NeuralCollapse(), Classifier()
        settings = {"max_steps": 2, "accumulate_grad_batches": 2, "max_epochs": -1}
        trainer(callback, **settings).fit(model, DataLoader(Endless(), 16))
        assert callback.latest["nc/train/counts"].nansum() == 64


def _frozen(model):
    model.configure_optimizers = lambda: torch.optim.SGD(model.parameters(), 0.0)
    return model


class Halving(DataLoader):
    """Changes its batches."""

    def __iter__(self):
        for x, y in super().__iter__():
            yield x / 2, y


class Filtering(DataLoader):
    """Changes what its iterator gives, as graph libraries do."""

    def _get_iterator(self):
        return ((x / 2, y) for x, y in super()._get_iterator())


class Short(DataLoader):
    """Ends an epoch early."""

    def __len__(self):
        return 3


class Repeating(DataLoader):
    """Keeps its iterator from epoch to epoch, so that its workers stay."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        vars(self)["batch_sampler"] = Again(self.batch_sampler)
        self.iterator = super().__iter__()

    def __len__(self):
        return len(self.batch_sampler.sampler)

    def __iter__(self):
        for _ in range(len(self)):
            yield next(self.iterator)


class Again:
    def __init__(self, sampler):
        self.sampler = sampler

    def __iter__(self):
        while True:
            yield from iter(self.sampler)


class TestMachinery:
    @pytest.mark.parametrize("kind", [Halving, Filtering])
    @pytest.mark.parametrize("workers", [0, 1])
    def test_of_a_loader_runs(self, kind, workers):
        callback, model = NeuralCollapse(), Classifier()
        data = kind(TensorDataset(X, Y), 16, shuffle=True, num_workers=workers)
        trainer(callback).fit(model, data)
        assert_whole(callback, model, (X / 2, Y))

    def test_over_a_stream(self):
        callback, model = NeuralCollapse(), Classifier()
        trainer(callback, limit_train_batches=5).fit(model, Halving(Endless(), 16))
        assert_whole(callback, model, (X / 2, Y))

    def test_of_several_ranks_shares_the_samples(self):
        data = Halving(TensorDataset(X, Y), 16, shuffle=True)
        seen = [x for rank in range(2) for x, _ in own_loaders(data, rank, 2)[0].loader]
        assert sorted((2 * torch.cat(seen)).tolist()) == sorted(X.tolist())

    def test_a_length_of_its_own_ends_a_look(self):
        callback, model = NeuralCollapse(), Classifier()
        trainer(callback).fit(model, Short(TensorDataset(X, Y), 16))
        assert_whole(callback, model, (X[:48], Y[:48]))

    def test_that_keeps_its_iterator(self):
        callback, model = NeuralCollapse(), Classifier()
        trainer(callback, max_epochs=2).fit(model, Repeating(TensorDataset(X, Y), 16, shuffle=True))
        assert_whole(callback, model)

    def test_that_keeps_its_workers_is_refused(self):
        data = Repeating(TensorDataset(X, Y), 16, num_workers=1)
        with pytest.raises(ValueError, match="got a Repeating that keeps its worker processes in an iterator"):
            trainer(NeuralCollapse()).fit(Classifier(), data)
        # As garbage it would wait seconds for its worker.
        data.iterator._shutdown_workers()

    @pytest.mark.slow
    def test_a_wrapper_around_a_loader(self):
        class Wrapper:
            def __init__(self, inner):
                self.inner = inner

            def __iter__(self):
                return ((x / 2, y) for x, y in self.inner)

            def __len__(self):
                return len(self.inner)

        callback, model = NeuralCollapse(), Classifier()
        trainer(callback).fit(model, Wrapper(Halving(TensorDataset(2 * X, Y), 16, shuffle=True)))
        assert_whole(callback, model, (X / 2, Y))

    def test_bulk_loading(self):
        sampler = BatchSampler(RandomSampler(range(80)), 16, drop_last=False)
        callback, model = NeuralCollapse(), Classifier()
        trainer(callback).fit(model, DataLoader(TensorDataset(X, Y), batch_size=None, sampler=sampler))
        assert_whole(callback, model)

    def test_a_table_that_reads_many_rows_at_once(self):
        class Table:
            """As datasets of Hugging Face are: no Dataset of torch's."""

            def __len__(self):
                return len(X)

            def __getitem__(self, key):
                return {"x": X[key], "label": Y[key]}

            def __getitems__(self, keys):
                return [self[key] for key in keys]

        class OfDicts(Classifier):
            def training_step(self, batch, batch_idx):
                return super().training_step((batch["x"], batch["label"]), batch_idx)

        callback, model = NeuralCollapse(), OfDicts()
        trainer(callback).fit(model, DataLoader(Table(), 16, shuffle=True))
        assert_whole(callback, model)


class Squeezing(Classifier):
    """Fails on a batch of one sample."""

    def forward(self, x):
        return super().forward(x.unsqueeze(2).squeeze())


class TestLimits:
    @pytest.mark.parametrize("shuffle", [True, False])
    def test_a_last_batch_of_one_that_training_drops(self, shuffle):
        data = TensorDataset(torch.cat([X, X[:1]]), torch.cat([Y, Y[:1]]))
        callback, model = NeuralCollapse(), Squeezing()
        trainer(callback, CentredMeanInit(), max_epochs=2).fit(model, DataLoader(data, 16, shuffle, drop_last=True))
        assert len(callback.history) == 2
        assert callback.latest["nc/train/counts"].sum() == (81 if shuffle else 80)

    class Data(LightningDataModule):
        def train_dataloader(self):
            return loader(shuffle=False)

        def val_dataloader(self):
            return loader(1, shuffle=False)

    @pytest.mark.parametrize(
        ("settings", "seen"),
        [({"limit_train_batches": 2}, 32), ({"limit_train_batches": 0.4}, 32), ({"fast_dev_run": True}, 16)],
    )
    @pytest.mark.parametrize("fitted", [True, False])
    def test_of_training_hold_in_validate(self, settings, seen, fitted):
        callback, model = NeuralCollapse(splits=["train", "val"]), Classifier()
        run = trainer(callback, **settings)
        if fitted:
            run.fit(model, datamodule=self.Data())
        run.validate(model, datamodule=self.Data(), verbose=False)
        counts = callback.latest["nc/train/counts"]
        assert counts.nansum() == seen

    def test_an_endless_training_stream_in_validate(self):
        class Data(self.Data):
            def train_dataloader(self):
                return DataLoader(Sized(), 16)

        callback, model = NeuralCollapse(splits=["val", "train"]), Classifier()
        trainer(callback).validate(model, datamodule=Data(), verbose=False)
        assert callback.latest["nc/train/counts"].sum() == 80

    def test_a_broken_training_loader_is_said_once_in_validate(self):
        class Data(self.Data):
            def train_dataloader(self):
                raise OSError("no such disk")

        callback, model = NeuralCollapse(splits=["val"]), Classifier()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer(callback).validate(model, datamodule=Data(), verbose=False)
        assert len([warning for warning in caught if "no such disk" in str(warning.message)]) == 1
        assert "nc/val/accuracy" in callback.latest
