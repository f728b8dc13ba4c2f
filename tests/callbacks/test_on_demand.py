"""Metrics that callbacks have on demand are those of the functions, on the samples of the last look."""

import pytest
import torch

import nc_callbacks.functional as F_nc
from nc_callbacks import FeatureSpectrum, NeuralCollapse, WeightMeanAlignment
from nc_callbacks.statistics import ClassStatistics
from tests.callbacks.common import Classifier, K, loader, samples, trainer

COUNTS = (40, 30, 4, 3)


@pytest.fixture(scope="module")
def fitted():
    model = Classifier()
    callbacks = [
        NeuralCollapse(unbalanced=True, standard_errors=True),
        WeightMeanAlignment(standard_errors=True),
        FeatureSpectrum(by_class=True),
    ]
    trainer(*callbacks).fit(model, loader(counts=COUNTS))
    x, y = samples(0, COUNTS)
    statistics = ClassStatistics(K, covariance="per_class")
    with torch.no_grad():
        statistics.update(model.double().eval().body(x.double()), y)
    latest = {key.removeprefix("nc/train/"): value for callback in callbacks for key, value in callback.latest.items()}
    return latest, statistics.compute(), model.head.weight.detach(), model.head.bias.detach()


def test_of_unbalanced_classes(fitted):
    latest, moments, weight, bias = fitted
    of_weights, of_means = F_nc.nc2_seli(weight, moments.means - moments.means.mean(0), torch.tensor(COUNTS))
    assert latest["nc2_seli_weights"] == pytest.approx(float(of_weights), rel=1e-5)
    assert latest["nc2_seli"] == pytest.approx(float(of_means), rel=1e-5)
    cosine = torch.nn.functional.cosine_similarity(weight[2], weight[3], dim=0)
    assert latest["minority_collapse"] == pytest.approx(float(cosine), rel=1e-5)
    assert latest["nc3_bias"] == pytest.approx(float(F_nc.nc3_bias(weight, moments.means, bias)), rel=1e-5)


def test_of_few_samples(fitted):
    latest, moments, weight, _ = fitted
    metrics = {
        "nc1": F_nc.nc1_corrected,
        "nc1_cdnv": F_nc.nc1_cdnv_corrected,
        "wm_cosine": lambda m: F_nc.wm_cosine_corrected(weight, m).mean(),
    }
    pooled = type(moments)(moments.counts, moments.means, moments.traces, moments.coordinate_sums, moments.within)
    for name, metric in metrics.items():
        assert latest[f"{name}_corrected"] == pytest.approx(
            float(metric(pooled)), rel=1e-4, nan_ok=name != "wm_cosine"
        ), name
        error = float(F_nc.standard_error(metric, pooled))
        assert latest[f"{name}_error"] == pytest.approx(error, rel=1e-4, nan_ok=name != "wm_cosine")
    assert 0 < latest["wm_cosine_error"] < 1


def test_of_spectra(fitted):
    latest, moments, weight, _ = fitted
    singular = torch.linalg.svdvals(weight)
    torch.testing.assert_close(latest["weight_singular_values"][:K], singular.float(), rtol=1e-5, atol=1e-6)
    stable = (singular**2).sum() / singular[0] ** 2
    assert latest["spectrum_stable_rank_weights"] == pytest.approx(float(stable), rel=1e-5)
    for rank, covariance in zip(latest["effective_rank_per_class"], moments.covariances, strict=True):
        values = torch.linalg.eigvalsh(covariance).clamp(min=0)
        q = values / values.sum()
        assert float(rank) == pytest.approx(float(torch.special.entr(q).sum().exp()), rel=1e-4)


def test_none_is_there_unasked():
    callback = NeuralCollapse()
    trainer(callback).fit(Classifier(), loader())
    words = ("seli", "minority", "corrected", "error")
    assert not any(word in key for key in callback.latest for word in words)
