"""A model that keeps what its own steps make, and the whole-set numbers of it."""

import numpy as np
import pytest
from torch import nn

from nc_callbacks import NeuralCollapse
from tests import reference
from tests.callbacks.common import Classifier, K


def online(callback=NeuralCollapse, **settings):
    return callback(mode="online", **settings)


class Recording(Classifier):
    """Keeps, for each epoch and each validation pass, what its own steps made: features, outputs, targets."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.train_rows, self.val_rows = [], []

    def features(self, x):
        return self.body(x)

    def forward(self, x):
        self.tally.calls += 1
        self.last = self.features(x)
        return self.head(self.last)

    def on_train_epoch_start(self):
        self.train_rows.append([])

    def on_validation_epoch_start(self):
        self.val_rows.append([])

    def keep(self, rows, batch, outputs):
        rows[-1].append([t.detach().clone().double().numpy() for t in (self.last, outputs, batch[1])])

    def training_step(self, batch, batch_idx):
        outputs = self(batch[0])
        self.keep(self.train_rows, batch, outputs)
        return nn.functional.cross_entropy(outputs, batch[1])

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.keep(self.val_rows, batch, self(batch[0]))


def whole(rows, train_rows, model):
    """Every number, in float64, of the recorded batches taken together."""
    features, outputs, targets = (np.concatenate(part) for part in zip(*rows, strict=True))
    targets = targets.astype(int)
    train_features, _, train_targets = (np.concatenate(part) for part in zip(*train_rows, strict=True))
    train_means = reference.moments(train_features, train_targets.astype(int), K).means
    moments = reference.moments(features, targets, K)
    m = reference.centred(moments.means)
    weight = model.head.weight.detach().double().numpy()
    nearest = reference.nearest_mean(features, train_means)
    return {
        "nc1": reference.nc1(moments.within, moments.means),
        "nc1_quotient": reference.nc1_quotient(moments.within, moments.means),
        "nc1_cdnv": reference.nc1_cdnv(moments.traces, moments.means),
        "nc2_equinorm": reference.nc2_equinorm(m),
        "nc2_equiangularity": reference.nc2_equiangularity(m),
        "nc2_etf": reference.nc2_etf(m),
        "nc3": reference.nc3(weight, moments.means),
        "nc3_etf": reference.nc3_etf(weight, moments.means),
        "nc4": np.mean(outputs.argmax(1) != nearest),
        "ncc_accuracy": np.mean(nearest == targets),
        "accuracy": np.mean(outputs.argmax(1) == targets),
    }


def assert_whole(record, split, rows, train_rows, model):
    for name, value in whole(rows, train_rows, model).items():
        assert record[f"nc/{split}/{name}"] == pytest.approx(value, rel=1e-5, abs=1e-7), (split, name)
    counts = np.bincount(np.concatenate([targets for _, _, targets in rows]).astype(int), minlength=K)
    assert record[f"nc/{split}/counts"].tolist() == counts.tolist()


def hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
