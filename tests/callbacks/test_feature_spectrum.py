"""FeatureSpectrum against the singular values of the whole activation matrix."""

import numpy as np
import pytest
import torch

from nc_callbacks import FeatureSpectrum
from tests.callbacks.common import Classifier, K, loader, samples, trainer


@pytest.mark.parametrize("centred", [False, True])
def test_numbers_and_vectors_of_two_layers(centred):
    callback, model = FeatureSpectrum(centred=centred, layers=["body.4"]), Classifier()
    trainer(callback).fit(model, loader())
    x, _ = samples()
    with torch.no_grad():
        layers = {"": model.double().eval().body(x.double()), "body.4/": model.body[:4](x.double())}
    for name, features in layers.items():
        h = features.numpy()
        singular = np.linalg.svd(h - h.mean(0) if centred else h, compute_uv=False)
        shares = singular**2 / np.sum(singular**2)
        positive = shares[shares > 0]
        latest = {key: callback.latest[f"nc/train/{name}{key}"] for key in ("singular_values", "explained_variance")}
        # Small singular values come from a squared matrix: they are exact relative to the largest.
        np.testing.assert_allclose(latest["singular_values"], singular, atol=1e-3 * singular[0])
        np.testing.assert_allclose(latest["explained_variance"], shares, atol=1e-6)
        np.testing.assert_allclose(
            callback.latest[f"nc/train/{name}cumulative_explained_variance"], np.cumsum(shares), atol=1e-6
        )
        rank = np.exp(-np.sum(positive * np.log(positive)))
        assert callback.latest[f"nc/train/{name}spectrum_effective_rank"] == pytest.approx(rank, rel=1e-4)
        assert callback.latest[f"nc/train/{name}spectrum_share"] == pytest.approx(shares[: K - 1].sum(), rel=1e-5)
    assert "nc/train/explained_variance" in callback.history[0]
    assert "nc/train/singular_values" not in callback.history[0]


def test_fewer_features_than_classes():
    class Narrow(Classifier):
        def __init__(self):
            super().__init__()
            self.body = torch.nn.Linear(6, 2)
            self.head = torch.nn.Linear(2, K)

    callback = FeatureSpectrum()
    trainer(callback).fit(Narrow(), loader())
    assert callback.latest["nc/train/spectrum_share"] == pytest.approx(1)
