"""Training does not notice: weights, optimiser state, batches and random numbers are bit-identical with and without."""

import random

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from nc_callbacks import FeatureSpectrum, NeuralCollapse, QuasiInterpolation, WeightMeanAlignment
from tests.callbacks.common import Classifier, loader, samples, trainer
from tests.processes import on_ranks

# One of the online callbacks has no cache, and half precision few digits.
pytestmark = pytest.mark.filterwarnings("ignore:The features of the", "ignore:nc1 is known to")


def all_callbacks():
    exact = {"splits": ["train", "val"], "layers": ["body.4"]}
    return [
        NeuralCollapse(ood_loader=loader(5), **exact),
        WeightMeanAlignment(a2_residual=True, implicit="full", **exact),
        QuasiInterpolation(samples=[0, 3], **exact),
        FeatureSpectrum(feature_cache=0, **exact),
        NeuralCollapse(mode="online", prefix="online", **exact),
    ]


class Recording(Classifier):
    """Keeps the batches it trains on."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch[0].clone())
        return super().training_step(batch, batch_idx)


class Plain(Recording):
    """Neither dropout nor batch norm."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.Tanh(), nn.Identity())


class SpectralNorm(Recording):
    """The classifier's weight changes its buffers where it is read in train mode."""

    def __init__(self):
        super().__init__()
        torch.nn.utils.parametrizations.spectral_norm(self.head)


class Augmented(Dataset):
    """Random augmentation from torch's, NumPy's and Python's random numbers."""

    x, y = samples()

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        noise = 0.1 * torch.randn(6) + 0.1 * np.random.rand() + 0.1 * random.random()  # noqa: NPY002
        return self.x[i] + noise, self.y[i]


class Stateful(Augmented):
    """Generators, a counter, a list and a buffer of its own, all of which shape what it gives."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(5)
        self.numpy_generator = np.random.default_rng(5)
        self.python_generator = random.Random(5)
        self.reads = 0
        self.order = [0]
        self.buffer = torch.zeros(6)

    def __getitem__(self, i):
        self.reads += 1
        self.order.append(i)
        x = self.x[i] + 0.1 * torch.randn(6, generator=self.generator) + 0.1 * self.numpy_generator.random()
        x = x + 0.1 * self.python_generator.random() + 1e-3 * self.reads + 1e-3 * len(self.order) + 0.1 * self.buffer
        self.buffer += 0.01 * x
        return x, self.y[i]


def run(callbacks, data, model=Recording, ckpt_path=None, **settings):
    """Weights, optimiser state, batches and the random numbers that follow."""
    L.seed_everything(1, verbose=False)
    net = model()
    torch.manual_seed(7)
    fit = trainer(*callbacks, **({"max_epochs": 3} | settings))
    fit.fit(net, data(), loader(1), ckpt_path=ckpt_path)
    following = (torch.rand(3), torch.from_numpy(np.random.rand(3)), torch.tensor(random.random()))  # noqa: NPY002
    return net, fit.optimizers[0].state_dict()["state"], following


def assert_bit_identical(one, other):
    (plain, plain_state, plain_next), (watched, state, following) = one, other
    assert len(plain.seen) == len(watched.seen) > 0
    assert all(torch.equal(a, b) for a, b in zip(plain.seen, watched.seen, strict=True))
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, watched.state_dict()[name]), name
    for index, values in plain_state.items():
        assert all(torch.equal(value, state[index][name]) for name, value in values.items())
    assert all(torch.equal(a, b) for a, b in zip(plain_next, following, strict=True))


def augmented(**settings):
    return DataLoader(Augmented(), **({"batch_size": 16, "shuffle": True} | settings))


CASES = {
    "plain": (loader, {"model": Plain}),
    "dropout, batch norm, augmentation": (augmented, {}),
    "worker processes": (lambda: augmented(num_workers=2), {}),
    "persistent workers": (lambda: augmented(num_workers=1, persistent_workers=True), {}),
    "user's generator": (lambda: augmented(generator=torch.Generator().manual_seed(11)), {}),
    "bf16-mixed": (augmented, {"precision": "bf16-mixed"}),
    "stateful dataset": (lambda: DataLoader(Stateful(), batch_size=16, shuffle=True), {}),
    "accumulation": (augmented, {"accumulate_grad_batches": 2, "val_check_interval": 0.5}),
}


@pytest.mark.parametrize("mode", ["epoch_end", "online"])
@pytest.mark.parametrize("head", [None, "head"])
def test_a_weight_that_steps_on_when_it_is_read(mode, head):
    watching = [NeuralCollapse(head=head, mode=mode), WeightMeanAlignment(head=head, mode=mode, implicit="full")]
    assert_bit_identical(run([], loader, SpectralNorm), run(watching, loader, SpectralNorm))


SLOW = ("worker processes", "persistent workers", "bf16-mixed", "accumulation")


@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW)) for case in CASES])
def test_bit_identical(case):
    data, settings = CASES[case]
    callbacks = all_callbacks()
    assert_bit_identical(run([], data, **settings), run(callbacks, data, **settings))
    assert all(len(callback.history) == 3 for callback in callbacks)


def test_bit_identical_after_resuming(tmp_path):
    def half(callbacks, name):
        L.seed_everything(1, verbose=False)
        fit = trainer(*callbacks, max_epochs=1)
        fit.fit(Recording(), loader(), loader(1))
        fit.save_checkpoint(tmp_path / name)
        return str(tmp_path / name)

    plain = run([], loader, ckpt_path=half([], "plain.ckpt"))
    callbacks = all_callbacks()
    watched = run(callbacks, loader, ckpt_path=half(all_callbacks(), "watched.ckpt"))
    assert_bit_identical(plain, watched)
    assert all(len(callback.history) == 3 for callback in callbacks)


def train(watched, folder):
    """Weights, optimiser, batches and the next random numbers of this rank."""
    L.seed_everything(1, verbose=False)
    model = Recording()
    fit = trainer(
        *(all_callbacks() if watched else []), devices=2, strategy="ddp", max_epochs=2, default_root_dir=folder
    )
    fit.fit(model, loader(0), loader(1))
    optimiser = fit.optimizers[0].state_dict()["state"]
    found = {"weights": model.state_dict(), "optimiser": optimiser, "batches": model.seen}
    return found | {"next": torch.rand(3)}


@pytest.mark.slow
def test_bit_identical_on_two_processes(tmp_path):
    plains, watcheds = (on_ranks(train, 2, watched, str(tmp_path)) for watched in (False, True))
    for plain, watched in zip(plains, watcheds, strict=True):
        assert len(plain["batches"]) == len(watched["batches"]) > 0
        assert all(torch.equal(a, b) for a, b in zip(plain["batches"], watched["batches"], strict=True))
        assert all(torch.equal(value, watched["weights"][name]) for name, value in plain["weights"].items())
        for index, values in plain["optimiser"].items():
            assert all(torch.equal(value, watched["optimiser"][index][name]) for name, value in values.items())
        assert torch.equal(plain["next"], watched["next"])
