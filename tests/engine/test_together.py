"""All four callbacks on one trainer: one pass, shared sums, training unchanged; nc5 and the squared error's parts."""

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nc_callbacks import ClassStatistics, FeatureSpectrum, NeuralCollapse, QuasiInterpolation, WeightMeanAlignment
from nc_callbacks.engine.session import session_of
from tests import reference
from tests.callbacks.common import Classifier, K, loader, samples, trainer


def all_four(**settings):
    return [
        NeuralCollapse(layers=["body.4"], **settings),
        WeightMeanAlignment(**settings),
        QuasiInterpolation(outputs="softmax", **settings),
        FeatureSpectrum(layers=["body.0"], **settings),
    ]


@pytest.mark.parametrize("head", [None, "head"])
def test_one_pass_and_the_sums_once(head, monkeypatch):
    updates = []
    original = ClassStatistics.__init__

    def record(self, *args, **kwargs):
        original(self, *args, **kwargs)
        updates.append(kwargs.get("covariance"))

    monkeypatch.setattr("nc_callbacks.engine.split.ClassStatistics.__init__", record)
    model, callbacks = Classifier(), all_four()
    callbacks[1] = WeightMeanAlignment(head=head)
    trainer(*callbacks, max_epochs=3).fit(model, loader())
    batches, epochs = 5, 3
    # Four forward calls find the classifier, two try the set-up; naming the head is a set-up of its own.
    checks = 6 if head is None else 11
    assert model.looks == checks + epochs * batches
    # One set of statistics for each of the three layers and each epoch, and one of each that is timed before.
    assert updates.count("pooled") == 3 * epochs + 3


def test_each_gives_what_it_gives_alone():
    # The model seeds itself, so each run trains alike.
    together = all_four()
    trainer(*together, max_epochs=2).fit(Classifier(), loader(shuffle=False))
    for callback, single in zip(together, all_four(), strict=True):
        trainer(single, max_epochs=2).fit(Classifier(), loader(shuffle=False))
        assert callback.latest.keys() == single.latest.keys()
        for key, value in single.latest.items():
            assert torch.equal(torch.as_tensor(callback.latest[key]), torch.as_tensor(value)), key


def test_training_does_not_notice():
    def run(*callbacks):
        L.seed_everything(1, verbose=False)
        model = Classifier()
        torch.manual_seed(2)
        trainer(*callbacks, max_epochs=3).fit(model, loader(), loader(1))
        return model.state_dict()

    plain, watched = run(), run(*all_four(splits=["train", "val"]))
    assert all(torch.equal(plain[name], watched[name]) for name in plain)


def test_no_covariances_stay_between_looks():
    kept = []

    class Model(Classifier):
        def on_train_epoch_end(self):
            kept.append(dict(session_of(self.trainer).found))

    trainer(*all_four(), max_epochs=2).fit(Model(), loader())
    assert kept == [{}, {}]


def test_different_schedules_share_what_coincides():
    model = Classifier()
    every, second = NeuralCollapse(), WeightMeanAlignment(every_n_epochs=2)
    trainer(every, second, max_epochs=4).fit(model, loader())
    assert model.looks == 6 + 4 * 5
    assert [record["epoch"] for record in second.history] == [1, 3]


class TestOutOfDistribution:
    @pytest.mark.parametrize("with_targets", [False, True])
    def test_nc5(self, with_targets):
        noise = torch.randn(50, 6, generator=torch.Generator().manual_seed(5)) + 1
        data = TensorDataset(noise, torch.zeros(50)) if with_targets else noise
        callback, model = NeuralCollapse(ood_loader=DataLoader(data, 8), layers=["body.4"]), Classifier()
        trainer(callback).fit(model, loader())
        x, y = samples()
        model = model.double().eval()
        with torch.no_grad():
            for key, body in (("", model.body), ("body.4/", model.body[:4])):
                means = reference.moments(body(x.double()).numpy(), y.numpy(), K).means
                ood = body(noise.double()).numpy().mean(0)
                value = np.mean([abs(reference.cosine(m, ood)) for m in means])
                assert callback.latest[f"nc/train/{key}nc5"] == pytest.approx(value, rel=1e-5)

    def test_another_shape_is_refused_before_training(self):
        callback = NeuralCollapse(ood_loader=DataLoader(torch.zeros(8, 5), 4))
        message = r"cannot take the out-of-distribution batch of shape \(4, 5\).*of shape \(16, 6\)"
        with pytest.raises(ValueError, match=message):
            trainer(callback).fit(Classifier(), loader())

    def test_two_loaders(self):
        callbacks = [NeuralCollapse(ood_loader=loader(seed), prefix=f"nc{seed}") for seed in (7, 8)]
        with pytest.raises(ValueError, match="different out-of-distribution loaders"):
            trainer(*callbacks).fit(Classifier(), loader())


@pytest.mark.parametrize("bias", [True, False])
def test_parts_of_the_squared_error_add_up(bias):
    decay = 0.01

    class Squared(Classifier):
        def training_step(self, batch, batch_idx):
            return nn.functional.mse_loss(self(batch[0]), nn.functional.one_hot(batch[1], K).float())

    callback, model = NeuralCollapse(mse_weight_decay=decay), Squared(bias=bias)
    trainer(callback).fit(model, loader())
    x, y = samples()
    with torch.no_grad():
        f = model.double().eval()(x.double())
    squared = (f - nn.functional.one_hot(y, K)).square().sum(1).mean().item() / 2
    norms = sum(parameter.detach().square().sum().item() for parameter in model.head.parameters())
    parts = [callback.latest[f"nc/train/mse_{name}"] for name in ("nc1", "nc23", "perp")]
    assert sum(parts) == pytest.approx(squared + decay / 2 * norms, rel=1e-5)
    assert min(parts) >= 0


def test_negative_weight_decay():
    with pytest.raises(ValueError, match="mse_weight_decay must be at least 0, got -1"):
        NeuralCollapse(mse_weight_decay=-1)
