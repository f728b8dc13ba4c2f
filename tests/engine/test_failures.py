"""What does not end training: looks that fail, memory that runs out, loggers that raise; and the table of errors."""

import re
import warnings

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader, Dataset, TensorDataset

from nc_callbacks import FeatureSpectrum, NeuralCollapse, QuasiInterpolation, WeightMeanAlignment
from tests.callbacks.common import Classifier, K, loader, samples, trainer, whole_set

X, Y = samples()


def all_four(**settings):
    return [kind(**settings) for kind in (NeuralCollapse, WeightMeanAlignment, QuasiInterpolation, FeatureSpectrum)]


def fit_with_warnings(callbacks, model=None, data=None, pattern="", **settings):
    """Fits, and returns the trainer and the warnings that match."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit = trainer(*callbacks, **{"max_epochs": 3} | settings)
        fit.fit(model or Classifier(), data or loader())
    assert fit.current_epoch == fit.max_epochs
    return fit, [str(w.message) for w in caught if re.search(pattern, str(w.message))]


def assert_whole(callback, model):
    for name, value in whole_set(model, (X, Y), (X, Y)).items():
        assert callback.latest[f"nc/train/{name}"] == pytest.approx(value, rel=1e-5, abs=1e-7), name


class Breaking(Dataset):
    """Draws random numbers, counts its reads, and raises at one sample while it is broken."""

    def __init__(self):
        self.broken, self.reads, self.rng = False, 0, np.random.default_rng(0)

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        self.reads += 1
        noise = torch.rand(6) + float(self.rng.normal())
        if self.broken and i == 40:
            raise OSError("disk went away")
        return X[i] + 0.1 * noise, Y[i]


class Switch(Callback):
    """Calls `switch(True)` before the look after one epoch, and `switch(False)` when the next begins."""

    def __init__(self, switch, epoch=1):
        self.switch, self.epoch = switch, epoch

    def on_train_epoch_start(self, trainer, pl_module):
        self.switch(False)

    def on_train_epoch_end(self, trainer, pl_module):
        self.switch(trainer.current_epoch == self.epoch)


class TestLoaderThatRaises:
    def run(self, *callbacks):
        data, model = Breaking(), Classifier()
        torch.manual_seed(5)
        switch = Switch(lambda on: setattr(data, "broken", on))
        _, told = fit_with_warnings([switch, *callbacks], model, DataLoader(data, 16, shuffle=True), "failed|disk")
        return model.state_dict() | {"next": torch.rand(3), "reads": torch.tensor(data.reads)}, told

    def test_training_goes_on_unchanged_with_one_warning(self):
        plain, _ = self.run()
        callbacks = all_four()
        watched, told = self.run(*callbacks)
        for name, tensor in plain.items():
            assert torch.equal(tensor, watched[name]), name
        assert len(told) == 1
        assert re.search(r"the look after epoch 2 failed, and nothing is measured there.*OSError: disk went", told[0])
        for callback in callbacks:
            assert [record["epoch"] for record in callback.history] == [0, 2]

    def test_model_or_batch_fn_that_raises(self):
        broken = []

        class Model(Classifier):
            def forward(self, x):
                if broken and not self.training:
                    raise RuntimeError("in forward")
                return super().forward(x)

        def batch_fn(batch):
            if broken:
                raise KeyError("in batch_fn")
            return batch

        switch = Switch(lambda on: broken.append(1) if on else broken.clear())
        for callback, model, error in (
            (NeuralCollapse(), Model(), "RuntimeError: in forward"),
            (NeuralCollapse(batch_fn=batch_fn), Classifier(), "KeyError: 'in batch_fn'"),
        ):
            _, told = fit_with_warnings([switch, callback], model, pattern="failed")
            assert len(told) == 1
            assert error in told[0]
            assert [record["epoch"] for record in callback.history] == [0, 2]
            assert not any(module._forward_hooks for module in model.modules())

    @pytest.mark.parametrize("mode", ["epoch_end", "online"])
    def test_targets_out_of_range_in_a_later_batch(self, mode):
        targets = Y.clone()
        targets[50] = 9

        class Model(Classifier):
            def training_step(self, batch, batch_idx):
                return super().training_step((batch[0], batch[1].clamp(max=K - 1)), batch_idx)

        callback, data = NeuralCollapse(mode=mode), DataLoader(TensorDataset(X, targets), 16)
        _, told = fit_with_warnings([callback], Model(), data, r"targets must lie in 0…3.*got \[9\]")
        assert len(told) == 1
        assert callback.latest.get("nc/train/counts", torch.zeros(K)).sum() == (64 if mode == "online" else 0)

    def test_measuring_that_raises(self):
        class Broken(NeuralCollapse):
            def measure(self, observation):
                if observation.split == "val":
                    raise ZeroDivisionError("by hand")
                return super().measure(observation)

        broken, other = Broken(splits=["train", "val"]), WeightMeanAlignment(splits=["train", "val"])
        with pytest.warns(
            UserWarning, match=r"Measuring the val split at 'head'.*ZeroDivisionError: by hand"
        ) as caught:
            trainer(broken, other, max_epochs=2).fit(Classifier(), loader(), loader(1))
        assert sum("by hand" in str(w.message) for w in caught) == 1
        assert "nc/train/nc1" in broken.latest
        assert not any(key.startswith("nc/val") for key in broken.latest)
        assert "nc/val/wm_cosine" in other.latest


class Hungry(Classifier):
    """Takes at most so many rows in eval mode, from the first training step to the end of fit."""

    def __init__(self, most, error=torch.OutOfMemoryError, always=False):
        super().__init__()
        self.most, self.error, self.hungry = most, error, always

    @property
    def tried(self):
        return self.tally.noted

    def on_train_batch_start(self, batch, batch_idx):
        self.hungry = True

    def on_fit_end(self):
        self.hungry = False

    def forward(self, x):
        if not self.training and self.hungry:
            self.tried.append(len(x))
            if len(x) > self.most:
                raise self.error("CUDA out of memory. can't allocate memory")
        return super().forward(x)


class TestOutOfMemory:
    @pytest.mark.parametrize(
        "error",
        [torch.OutOfMemoryError, *(pytest.param(kind, marks=pytest.mark.slow) for kind in (MemoryError, RuntimeError))],
    )
    def test_the_cache_is_given_up_and_then_batches_shrink(self, error):
        callback, model = NeuralCollapse(), Hungry(5, error)
        _, told = fit_with_warnings([callback], model, pattern="failed|memory", max_epochs=2)
        assert told == []
        # With the cache, without, at 8, at 4; then two passes, for nothing is cached. The second look starts there.
        assert model.tried == [16, 16, 8] + [4] * 40 + [4] * 40
        assert_whole(callback, model)

    def test_giving_up_the_cache_can_be_enough(self):
        class Once(Hungry):
            def forward(self, x):
                self.most = 0 if len(self.tried) == 3 else 16
                return super().forward(x)

        callback, model = NeuralCollapse(), Once(16)
        fit_with_warnings([callback], model, max_epochs=1)
        # Four batches, of which the last fails, then two passes of five.
        assert model.tried == [16] * 14
        assert_whole(callback, model)

    @pytest.mark.slow
    def test_never_enough(self):
        callbacks, model = all_four(), Hungry(0)
        _, told = fit_with_warnings(callbacks, model, pattern="failed|memory")
        assert len(told) == 1
        assert re.search(r"the look after epoch 1 failed.*OutOfMemoryError", told[0])
        assert all(callback.history == [] for callback in callbacks)
        assert model.tried[:8] == [16, 16, 8, 4, 2, 1, 1, 1]

    def test_already_in_the_try_before_training(self):
        callback = NeuralCollapse()
        fit_with_warnings([callback], Hungry(5, always=True))
        assert len(callback.history) == 3

    @pytest.mark.parametrize("most", [1, pytest.param(3, marks=pytest.mark.slow)])
    def test_limits_are_of_the_same_samples(self, most):
        callback = NeuralCollapse()
        fit_with_warnings([callback], Hungry(most), loader(batch_size=10), limit_train_batches=3)
        assert int(callback.latest["nc/train/counts"].sum()) == 30

    def test_limits_where_batches_cannot_shrink(self):
        class Batches:
            def __iter__(self):
                return iter(X[:64].split(16)[i : i + 1] + Y[:64].split(16)[i : i + 1] for i in range(4))

            def __len__(self):
                return 4

        class Late(Hungry):
            def forward(self, x):
                self.most = 0 if len(self.tried) < 2 else 99
                return super().forward(x)

        callback = NeuralCollapse()
        fit_with_warnings([callback], Late(0), Batches(), limit_train_batches=2, max_epochs=1)
        assert int(callback.latest["nc/train/counts"].sum()) == 32
