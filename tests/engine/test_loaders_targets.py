"""Looks through loaders under the trainer's limits, with targets and sequences of many makes."""

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch import nn
from torch.utils.data import (
    DataLoader,
    TensorDataset,
)

from nc_callbacks import NeuralCollapse
from tests import reference
from tests.callbacks.common import COUNTS, Classifier, K, loader, samples, trainer
from tests.engine.loaders import X, Y, assert_whole


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
