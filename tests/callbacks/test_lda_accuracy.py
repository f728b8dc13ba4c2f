"""The accuracy of whitened class means beside that of the nearest one, at every layer and on every split."""

import pytest
import torch

from nc_callbacks import CentredMeanHead, NeuralCollapse
from tests.callbacks.common import Classifier, K, loader, samples, trainer


def accuracy(model, depth, seed):
    """On these samples, of the head of the training samples."""
    part = model.body[:depth].eval()
    (x, y), (x_seen, y_seen) = samples(seed), samples(0)
    with torch.no_grad():
        features, seen = part(x), part(x_seen)
    head = CentredMeanHead(None, K, whiten=True)
    head.update(seen, y_seen)
    head.finalize()
    return (head(features).argmax(1) == y).float().mean().item()


@pytest.mark.parametrize("cache", [None, 0])
def test_is_that_of_the_head_at_every_layer(cache):
    model = Classifier()
    callback = NeuralCollapse(lda_accuracy=True, splits=["train", "val"], layers=["body.4"], feature_cache=cache)
    trainer(callback).fit(model, loader(), loader(1))
    for split, seed in (("train", 0), ("val", 1)):
        for layer, depth in (("", 6), ("body.4/", 4)):
            found = callback.latest[f"nc/{split}/{layer}lda_accuracy"]
            assert found == pytest.approx(accuracy(model, depth, seed), abs=1e-6), (split, layer)


def test_is_left_out_unless_asked_for():
    callback = NeuralCollapse()
    trainer(callback).fit(Classifier(), loader())
    assert "nc/train/lda_accuracy" not in callback.latest


def test_is_left_out_with_a_warning_where_there_is_nothing_to_whiten_by():
    class Constant(Classifier):
        def forward(self, x):
            # The features are the class means: Σ_W is 0.
            return self.head(self.body(x) * 0 + (x[:, :1] > 0).float() * torch.arange(8))

    callback = NeuralCollapse(lda_accuracy=True)
    data = [(torch.full((6,), float(2 * (y % 2) - 1)), y % 2) for y in range(16)]
    with pytest.warns(UserWarning, match="lda_accuracy of 'head' is not measured: Σ_W is 0"):
        trainer(callback).fit(Constant(num_classes=2), torch.utils.data.DataLoader(data, 8))
    assert "nc/train/lda_accuracy" not in callback.latest
    assert callback.latest["nc/train/ncc_accuracy"] == 1
