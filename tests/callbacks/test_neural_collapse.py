"""NeuralCollapse: the numbers of a whole training set, straight from the definitions."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from nc_callbacks import NeuralCollapse, WeightMeanAlignment
from tests import reference
from tests.callbacks.common import COUNTS, Classifier, K, loader, samples, trainer, whole_set


@pytest.mark.parametrize("feature_cache", ["512MiB", 0], ids=["from the cache", "in a second pass"])
def test_numbers_of_train_and_val(feature_cache):
    callback = NeuralCollapse(splits=["train", "val"], feature_cache=feature_cache)
    model = Classifier()
    fit = trainer(callback, max_epochs=2)
    fit.fit(model, loader(0), loader(1))
    train, val = samples(0), samples(1)
    for split, data in (("train", train), ("val", val)):
        for name, value in whole_set(model, data, train).items():
            assert callback.latest[f"nc/{split}/{name}"] == pytest.approx(value, rel=1e-5, abs=1e-7), (split, name)
            assert float(fit.callback_metrics[f"nc/{split}/{name}"]) == pytest.approx(value, rel=1e-5, abs=1e-6)
    assert callback.latest["nc/train/tpt"] == float(callback.latest["nc/train/accuracy"] == 1)
    assert "nc/val/tpt" not in callback.latest


def test_vectors_and_matrix():
    callback, model = NeuralCollapse(), Classifier()
    trainer(callback).fit(model, loader())
    x, y = samples()
    with torch.no_grad():
        features = model.eval().body(x).double().numpy()
    m = reference.centred(reference.moments(features, y.numpy(), K).means)
    norms = np.linalg.norm(m, axis=1)
    np.testing.assert_allclose(callback.latest["nc/train/class_mean_norms"], norms, rtol=1e-5)
    cosines = (m / norms[:, None]) @ (m / norms[:, None]).T
    np.testing.assert_allclose(callback.latest["nc/train/class_mean_cosines"], cosines, atol=1e-6)
    assert callback.latest["nc/train/counts"].tolist() == list(COUNTS)
    assert "nc/train/class_mean_norms" in callback.history[0]
    assert "nc/train/class_mean_cosines" not in callback.history[0]


def test_global_mean_over_samples():
    callback, model = NeuralCollapse(global_mean="samples"), Classifier()
    trainer(callback).fit(model, loader())
    x, y = samples()
    with torch.no_grad():
        features = model.eval().body(x).double().numpy()
    moments = reference.moments(features, y.numpy(), K)
    m = moments.means - features.mean(0)
    weight = model.head.weight.detach().double().numpy()
    between = m.T @ m / K
    values = {
        "nc1": np.trace(moments.within @ np.linalg.pinv(between, rcond=1e-10)) / K,
        "nc1_quotient": np.trace(moments.within) / np.trace(between),
        "nc2_equinorm": reference.nc2_equinorm(m),
        "nc2_equiangularity": reference.nc2_equiangularity(m),
        "nc3": np.linalg.norm(weight / np.linalg.norm(weight) - m / np.linalg.norm(m)) ** 2,
    }
    for name, value in values.items():
        assert callback.latest[f"nc/train/{name}"] == pytest.approx(value, rel=1e-5), name


def test_layers_log_what_needs_no_weight():
    callback, model = NeuralCollapse(layers=["body.4"]), Classifier()
    trainer(callback).fit(model, loader())
    x, y = samples()
    with torch.no_grad():
        hidden = model.eval().body[:4](x).double().numpy()
    moments = reference.moments(hidden, y.numpy(), K)
    latest = callback.latest
    assert latest["nc/train/body.4/nc1"] == pytest.approx(reference.nc1(moments.within, moments.means), rel=1e-5)
    nearest = reference.nearest_mean(hidden, moments.means)
    assert latest["nc/train/body.4/ncc_accuracy"] == pytest.approx(np.mean(nearest == y.numpy()))
    assert not any(f"nc/train/body.4/{name}" in latest for name in ("nc3", "nc4", "accuracy", "nc2_etf_weights"))


def test_classifier_as_a_convolution():
    class Convolutional(Classifier):
        def __init__(self):
            super().__init__()
            self.head = nn.Conv2d(8, K, 1, bias=False)

        def forward(self, x):
            return self.head(self.body(x)[:, :, None, None]).flatten(1)

    callback, model = NeuralCollapse(), Convolutional()
    trainer(callback).fit(model, loader())
    x, y = samples()
    with torch.no_grad():
        features = model.eval().body(x).double().numpy()
    means = reference.moments(features, y.numpy(), K).means
    weight = model.head.weight.detach().flatten(1).double().numpy()
    assert callback.latest["nc/train/nc3"] == pytest.approx(reference.nc3(weight, means), rel=1e-5)


def test_an_absent_class_is_left_out_with_one_warning():
    x, y = samples()
    keep = y != 2
    model, callback = Classifier(), NeuralCollapse()
    # The classifier prefers the class that never occurs.
    model.head.bias.data[2] = 5
    other = WeightMeanAlignment()
    with pytest.warns(UserWarning, match=r"No train sample has class 2: 1 of the 4 rows of the classifier 'head'") as w:
        trainer(callback, other, max_epochs=2).fit(model, DataLoader(TensorDataset(x[keep], y[keep]), 16))
    assert sum("No train sample" in str(warning.message) for warning in w) == 1
    with torch.no_grad():
        features = model.eval().body(x[keep]).double().numpy()
    means = reference.moments(features, y[keep].numpy(), K).means[[0, 1, 3]]
    weight = model.head.weight.detach().double().numpy()[[0, 1, 3]]
    assert callback.latest["nc/train/nc3"] == pytest.approx(reference.nc3(weight, means), rel=1e-5)
    assert callback.latest["nc/train/nc2_etf"] == pytest.approx(reference.nc2_etf(reference.centred(means)), rel=1e-5)
    # The absent class takes no part in the comparison of classifier and nearest class mean either.
    predicted = (features @ weight.T + model.head.bias.detach().double().numpy()[[0, 1, 3]]).argmax(1)
    mismatch = np.mean(predicted != reference.nearest_mean(features, means))
    assert callback.latest["nc/train/nc4"] == pytest.approx(mismatch)
    norms = callback.latest["nc/train/class_mean_norms"].numpy()
    np.testing.assert_allclose(norms[[0, 1, 3]], np.linalg.norm(reference.centred(means), axis=1), rtol=1e-5)
    assert np.isnan(norms[2])
    cosines = callback.latest["nc/train/class_mean_cosines"]
    assert cosines.shape == (K, K)
    assert cosines[2].isnan().all()
    nearest = np.array([0, 1, 3])[reference.nearest_mean(features, means)]
    assert callback.latest["nc/train/ncc_accuracy"] == pytest.approx(np.mean(nearest == y[keep].numpy()))


def test_a_split_with_one_class_is_not_measured():
    callback = NeuralCollapse(splits=["train", "val"])
    with (
        pytest.warns(UserWarning, match="No val sample has class 1, 2, 3"),
        pytest.warns(UserWarning, match="The val split has samples of one class only"),
    ):
        trainer(callback).fit(Classifier(), loader(), loader(1, counts=(9,)))
    assert "nc/train/nc1" in callback.latest
    assert "nc/val/nc1" not in callback.latest


class Poisoned(Dataset):
    """NaN in some samples from the second epoch on."""

    def __init__(self):
        self.x, self.y = samples()
        self.bad = 0

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return (self.x[i] * torch.nan if i < self.bad else self.x[i]), self.y[i]


def test_features_that_are_not_finite():
    data = Poisoned()

    class Model(Classifier):
        def on_train_epoch_end(self):
            pass

        def training_step(self, batch, batch_idx):
            # Training itself stays sound: the poison shows in the look only.
            return nn.functional.cross_entropy(self(batch[0].nan_to_num()), batch[1])

        def on_train_epoch_start(self):
            data.bad = 3 if self.current_epoch >= 1 else 0

    callback = NeuralCollapse()
    fit = trainer(callback, max_epochs=3)
    message = r"3 of 80 train samples have NaN or infinite features at 'head' in epoch 2"
    with pytest.warns(UserWarning, match=message) as warnings:
        fit.fit(Model(), DataLoader(data, 16))
    assert sum("infinite features" in str(w.message) for w in warnings) == 1
    assert not any("affine" in str(w.message) for w in warnings)
    assert fit.current_epoch == 3
    assert math.isfinite(callback.history[0]["nc/train/nc1"])
    for record in callback.history[1:]:
        numbers = [value for key, value in record.items() if key.startswith("nc/") and isinstance(value, float)]
        assert numbers
        assert all(math.isnan(value) for value in numbers)


def test_soft_labels_and_dict_batches():
    class Dicts(Dataset):
        x, y = samples()

        def __len__(self):
            return len(self.x)

        def __getitem__(self, i):
            return {"image": self.x[i], "label": nn.functional.one_hot(self.y[i], K).float()}

    class Model(Classifier):
        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self(batch["image"]), batch["label"])

    callback = NeuralCollapse()
    trainer(callback).fit(Model(), DataLoader(Dicts(), 16))
    plain = NeuralCollapse()
    trainer(plain).fit(Classifier(), loader(shuffle=False))
    assert callback.latest["nc/train/nc1"] == pytest.approx(plain.latest["nc/train/nc1"], rel=1e-5)
