"""WeightMeanAlignment: the numbers of a whole training set, straight from the definitions."""

import numpy as np
import pytest
import torch

from nc_callbacks import ClassStatistics, WeightMeanAlignment
from nc_callbacks import functional as F_nc
from nc_callbacks.statistics import classes
from tests import reference
from tests.callbacks.common import Classifier, K, loader, samples, trainer


def features_of(model, data):
    with torch.no_grad():
        return model.double().eval().body(data[0].double()).numpy()


def test_numbers_of_train_and_val():
    callback, model = WeightMeanAlignment(splits=["train", "val"]), Classifier(bias=False)
    trainer(callback, max_epochs=2).fit(model, loader(0), loader(1))
    weight = model.head.weight.detach().double().numpy()
    train, val = samples(0), samples(1)
    train_means = reference.moments(features_of(model, train), train[1].numpy(), K).means
    for split, data in (("train", train), ("val", val)):
        h, y = features_of(model, data), data[1].numpy()
        moments = reference.moments(h, y, K)
        m, p = moments.means, h.shape[1]
        cosines = reference.wm_cosine(weight, m)
        diagonals = [np.mean(np.diag(c)) for c in moments.covariances]
        off_diagonals = [(c.sum() - np.trace(c)) / (p * (p - 1)) for c in moments.covariances]
        pairs = [m[a] @ m[b] for a in range(K) for b in range(K) if a != b]
        expected = {
            "wm_cosine": np.mean(cosines),
            "wm_cosine_min": np.min(cosines),
            "wm_cosine_max": np.max(cosines),
            "accuracy": np.mean((h @ weight.T).argmax(1) == y),
            "accuracy_centred_means": np.mean((h @ reference.centred(train_means).T).argmax(1) == y),
            "mu1": np.mean([v @ v for v in m]),
            "mu2": np.mean(pairs),
            "mu_ratio": np.mean(pairs) / np.mean([v @ v for v in m]),
            "sigma1": np.mean(diagonals),
            "sigma2": np.mean(off_diagonals),
            "sigma_ratio": np.mean(off_diagonals) / np.mean(diagonals),
        }
        for name, value in expected.items():
            assert callback.latest[f"nc/{split}/{name}"] == pytest.approx(value, rel=1e-5, abs=1e-7), (split, name)
        np.testing.assert_allclose(callback.latest[f"nc/{split}/wm_cosine_per_class"], cosines, rtol=1e-5)
        np.testing.assert_allclose(callback.history[-1][f"nc/{split}/sigma1_per_class"], diagonals, rtol=1e-5)


@pytest.mark.parametrize("variant", ["full", "published"])
def test_a2_residual_and_proposition_2(variant):
    callback, model = WeightMeanAlignment(a2_residual=True, implicit=variant), Classifier(bias=False)
    trainer(callback).fit(model, loader())
    x, y = samples()
    h = torch.from_numpy(features_of(model, (x, y)))
    statistics = ClassStatistics(K, covariance="per_class")
    statistics.update(h, y)
    moments, weight = statistics.compute(), model.head.weight.detach().double()
    implied = F_nc.implicit_weights(weight, moments, (h, y), variant)
    residual = ((implied - weight).norm() / weight.norm()).item()
    # Near-singular class covariances magnify the rounding of the float32 features.
    assert callback.latest["nc/train/implicit_residual"] == pytest.approx(residual, rel=1e-3)
    cosine = torch.nn.functional.cosine_similarity(implied, weight).mean().item()
    assert callback.latest["nc/train/implicit_cosine"] == pytest.approx(cosine, rel=1e-3)
    assert callback.latest["nc/train/a2_residual"] == pytest.approx(F_nc.a2_residual(moments).item(), rel=1e-4)


def test_proposition_2_of_a_model_in_half_precision():
    callback, model = WeightMeanAlignment(implicit="full"), Classifier(bias=False)
    trainer(callback, precision="bf16-true").fit(model, loader())
    x, y = samples()
    with torch.no_grad():
        h = model.eval().body(x.bfloat16())
        outputs = model.head(h)
    statistics = ClassStatistics(K, covariance="per_class")
    statistics.update(h, y)
    weight = model.head.weight.detach().double()
    implied = F_nc.implicit_weights(weight, statistics.compute(), F_nc.softmax_expectations(outputs.double(), y))
    residual = ((implied - weight).norm() / weight.norm()).item()
    assert callback.latest["nc/train/implicit_residual"] == pytest.approx(residual, rel=1e-4)
    cosine = torch.nn.functional.cosine_similarity(implied, weight).mean().item()
    assert callback.latest["nc/train/implicit_cosine"] == pytest.approx(cosine, rel=1e-4)


def test_gathers_no_matrix_of_features_by_default(monkeypatch):
    gathered = []
    original = classes.ClassStatistics._products_shape

    def record(self, p):
        shape = original(self, p)
        gathered.append(np.prod(shape) if p else 0)
        return shape

    monkeypatch.setattr(classes.ClassStatistics, "_products_shape", record)
    trainer(WeightMeanAlignment(layers=["body.4"])).fit(Classifier(), loader())
    assert gathered
    assert max(gathered) == 0


def test_layers_have_means_and_covariances_only():
    callback = WeightMeanAlignment(layers=["body.4"])
    trainer(callback).fit(Classifier(), loader())
    names = {key.rsplit("/", 1)[1] for key in callback.latest if "/body.4/" in key}
    assert {"mu1", "mu2", "sigma1", "sigma2", "mu_ratio", "sigma_ratio"} <= names
    assert not any("cosine" in name or "accuracy" in name for name in names)


def test_bad_variant():
    with pytest.raises(ValueError, match='implicit must be None, "full" or "published"'):
        WeightMeanAlignment(implicit="half")
