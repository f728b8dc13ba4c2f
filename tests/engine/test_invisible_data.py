"""Data that keeps state of its own is trained on bit-identically with and without a look."""

import itertools
import random
import threading
from contextlib import ExitStack

import lightning as L
import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Sampler, TensorDataset

from nc_callbacks import NeuralCollapse
from tests.callbacks.common import Classifier, loader, samples, trainer

X, Y = samples()
READS = 0


class Recording(Classifier):
    def __init__(self):
        super().__init__()
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch[0].clone())
        return super().training_step(batch, batch_idx)


class Reads(Dataset):
    """Every way to keep count of reads."""

    reads = 0

    def __init__(self):
        self.large, self.cache, self.numbers = np.zeros(10**6), {}, itertools.count()
        self.rng, self.noise = random.Random(1), (0.01 * i for i in itertools.count())

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        global READS
        READS += 1
        type(self).reads += 1
        self.large[0] += 1
        self.cache[i] = self.cache.get(i, 0) + 1
        by = READS + type(self).reads + self.large[0] + self.cache[i] + next(self.numbers)
        return X[i] * (1 + 1e-5 * by) + 0.1 * self.rng.random() + next(self.noise), Y[i]


class Shuffling(IterableDataset):
    """Another order in each epoch."""

    def __init__(self):
        self.epoch = 0

    def __len__(self):
        return len(X)

    def __iter__(self):
        self.epoch += 1
        return iter([(X[i], Y[i]) for i in np.random.default_rng(self.epoch).permutation(len(X))])


class Batches:
    """No DataLoader, with a generator and a thread's lock."""

    def __init__(self, lock=False):
        self.rng = torch.Generator().manual_seed(1)
        self.lock = threading.Lock() if lock else None

    def __len__(self):
        return 5

    def __iter__(self):
        for i in torch.randperm(80, generator=self.rng).split(16):
            yield X[i], Y[i]


class Wrapper:
    """Holds a loader and changes its batches, by numbers of its own."""

    def __init__(self, inner):
        self.inner, self.rng = inner, np.random.default_rng(2)

    def __len__(self):
        return len(self.inner)

    def __iter__(self):
        for x, y in self.inner:
            yield x + 0.1 * float(self.rng.normal()), y


class OwnOrder(Sampler):
    """Epochs counted in the sampler."""

    def __init__(self):
        self.epoch = 0

    def __len__(self):
        return len(X)

    def __iter__(self):
        self.epoch += 1
        return iter(np.random.default_rng(self.epoch).permutation(len(X)).tolist())


class Noisy(DataLoader):
    """A loader with an `__iter__` and numbers of its own."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.rng, self.epochs = torch.Generator().manual_seed(4), 0

    def __iter__(self):
        self.epochs += 1
        for x, y in super().__iter__():
            yield x + 0.1 * torch.randn(x.shape, generator=self.rng) + 0.01 * self.epochs, y


class Lines(IterableDataset):
    """Goes on in a file that is open, an epoch a part."""

    def __init__(self, path):
        path.write_text("\n".join(str(number) for number in range(10_000)))
        self.file = path.open()

    def __iter__(self):
        for i in range(80):
            yield X[i] * (1 + 1e-4 * int(self.file.readline())), Y[i]


class Data(L.LightningDataModule):
    """Numbers of its own in collate and after the transfer."""

    def __init__(self):
        super().__init__()
        self.rng, self.moved = torch.Generator().manual_seed(3), 0

    def collate(self, items):
        x, y = map(torch.stack, zip(*items, strict=True))
        return x + 0.1 * torch.randn(x.shape, generator=self.rng), y

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.moved += 1
        return batch[0] * (1 + 1e-3 * self.moved), batch[1]

    def train_dataloader(self):
        return DataLoader(TensorDataset(X, Y), 16, shuffle=True, collate_fn=self.collate)


CASES = {
    "reads": lambda: DataLoader(Reads(), 16, shuffle=True),
    "worker": lambda: DataLoader(Reads(), 16, shuffle=True, num_workers=1),
    "a stream that shuffles itself": lambda: DataLoader(Shuffling(), 16),
    "batches": Batches,
    "batches, in this process": lambda: Batches(lock=True),
    "a wrapper": lambda: Wrapper(loader(drop_last=True)),
    "a wrapper around a wrapper": lambda: Wrapper(Wrapper(DataLoader(Reads(), 16))),
    "a sampler that counts": lambda: DataLoader(TensorDataset(X, Y), 16, sampler=OwnOrder()),
    "a batch sampler over it": lambda: DataLoader(
        TensorDataset(X, Y), batch_sampler=BatchSampler(OwnOrder(), 16, False)
    ),
    "a loader with an __iter__": lambda: Noisy(TensorDataset(X, Y), 16, shuffle=True),
    "a data module": Data,
}


def run(make, *callbacks):
    global READS
    READS, Reads.reads = 0, 0
    model, data = Recording(), make()
    torch.manual_seed(1)
    fit = trainer(*callbacks, max_epochs=2)
    fit.fit(model, **{"datamodule" if isinstance(data, Data) else "train_dataloaders": data})
    return model, torch.rand(2)


def assert_identical(make, mode):
    callback = NeuralCollapse(mode=mode)
    (plain, following), (watched, also_following) = run(make), run(make, callback)
    assert len(callback.history) == 2
    assert len(plain.seen) == len(watched.seen) > 0
    assert all(torch.equal(a, b) for a, b in zip(plain.seen, watched.seen, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))
    assert torch.equal(following, also_following)


@pytest.mark.parametrize("mode", ["epoch_end", pytest.param("online", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CASES)
def test_bit_identical(case, mode):
    assert_identical(CASES[case], mode)


@pytest.mark.parametrize("mode", ["epoch_end", "online"])
def test_a_file_that_is_read_on(mode, tmp_path):
    with ExitStack() as files:

        def make():
            lines = Lines(tmp_path / "lines")
            files.enter_context(lines.file)
            return DataLoader(lines, 16)

        assert_identical(make, mode)


def test_a_cache_that_training_fills_stays_filled_and_is_used():
    class Cached(Dataset):
        def __init__(self):
            self.cache, self.decoded = {}, 0

        def __len__(self):
            return len(X)

        def __getitem__(self, i):
            if i not in self.cache:
                self.decoded += 1
                self.cache[i] = X[i].clone()
            return self.cache[i], Y[i]

    data = Cached()
    trainer(NeuralCollapse(), max_epochs=3).fit(Classifier(), DataLoader(data, 16, shuffle=True))
    assert len(data.cache) == data.decoded == 80
