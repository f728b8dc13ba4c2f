"""CentredMeanInit(whiten=True): where it starts, without a bias too, and what it refuses."""

import re
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from nc_callbacks import CentredMeanInit, ClassStatistics
from nc_callbacks.functional import gcv_shrinkage, oas_shrinkage
from nc_callbacks.transfer.forms import without_bias
from tests import reference
from tests.callbacks.common import Classifier, K, loader, samples, trainer
from tests.callbacks.test_centred_mean_init import Recorded
from tests.functional.test_whitening import expected


def features():
    x, y = samples()
    with torch.no_grad():
        return Classifier().body.eval()(x), y


def moments():
    statistics = ClassStatistics(K)
    statistics.update(*features())
    return statistics.compute()


def shrinkage():
    return max(float(gcv_shrinkage(moments())), float(oas_shrinkage(moments())))


def start_of(priors="uniform", a=None):
    h, y = features()
    return expected(h.numpy(), y.numpy(), K, shrinkage() if a is None else a, priors)


@pytest.mark.parametrize("settings", [{}, {"shrinkage": 0.3, "priors": "empirical"}])
def test_starts_at_the_whitened_class_means(settings):
    weight, bias = start_of(settings.get("priors", "uniform"), settings.get("shrinkage"))
    model, callback = Recorded(), CentredMeanInit(whiten=True, scale=2.0, **settings)
    trainer(callback).fit(model, loader())
    np.testing.assert_allclose(model.first_weight, 2 * weight, rtol=1e-3, atol=1e-4 * np.abs(weight).max())
    # All logits but for a common constant.
    found = model.first_bias.numpy() - 2 * bias
    np.testing.assert_allclose(found - found.mean(), 0, atol=1e-3 * np.abs(bias).max())
    assert not torch.equal(model.head.weight, model.first_weight)


def test_fitted_scale_is_that_of_logits_with_the_bias():
    h, y = features()
    model, callback = Recorded(), CentredMeanInit(whiten=True)
    trainer(callback).fit(model, loader())
    logits = h.double() @ model.first_weight.double().T + model.first_bias.double()
    losses = [nn.functional.cross_entropy(factor * logits, y).item() for factor in (0.99, 1.0, 1.01)]
    assert losses[1] == min(losses)


class WithoutBias(Recorded):
    """Its features lie around 1, as those behind ReLU do."""

    def __init__(self, offset):
        super().__init__()
        self.head = nn.Linear(8, K, bias=False)
        self.offset = offset

    def forward(self, x):
        return self.head(self.body(x) + self.offset)

    def on_train_batch_start(self, batch, batch_idx):
        if batch_idx == 0 and self.current_epoch == 0:
            self.first_weight = self.head.weight.detach().clone()


@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_a_classifier_without_bias_gets_the_best_and_a_warning(offset):
    model = WithoutBias(offset)
    with pytest.warns(
        UserWarning, match=r"has no bias, .* classifies \d+\.\d% rightly, and with a bias \d+\.\d%"
    ) as caught:
        trainer(CentredMeanInit(whiten=True, head="head", scale=1.0)).fit(model, loader())
    (said,) = [str(w.message) for w in caught if "has no bias" in str(w.message)]
    h, y = features()
    h = h + offset
    statistics = ClassStatistics(K)
    statistics.update(h, y)
    a = max(float(gcv_shrinkage(statistics.compute())), float(oas_shrinkage(statistics.compute())))
    weight, bias = expected(h.numpy(), y.numpy(), K, a)
    logits = h.double().numpy() @ weight.T + bias
    found = (h @ model.first_weight.T).numpy()
    right = [(values.argmax(1) == y.numpy()).mean() for values in (found, h.double().numpy() @ weight.T, logits)]
    shares = [float(share) / 100 for share in re.findall(r"(\d+\.\d)%", said)]
    assert shares == pytest.approx([right[0], right[2]], abs=6e-4)
    assert right[0] >= right[1]
    if offset:
        assert right[0] >= right[2] - 0.05


def test_direction_that_carries_a_bias_is_the_least_squares_guess_of_one():
    h, targets = reference.gaussian_classes([60, 40, 30], 5, offset=2.0)
    statistics = ClassStatistics(3)
    statistics.update(torch.as_tensor(h), torch.as_tensor(targets))
    found = statistics.compute()
    direction = without_bias(torch.zeros(3, 5), torch.tensor([1.0, 0, 0]), found)[0].double().numpy()
    best = np.linalg.lstsq(h, np.ones(len(h)), rcond=None)[0]
    # Little is left of the shrinkage here.
    np.testing.assert_allclose(h @ direction, h @ best, atol=0.03)


def test_centred_start_warns_of_no_bias():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The classifier 'head' has no bias")
        trainer(CentredMeanInit(head="head")).fit(WithoutBias(0.0), loader())


@pytest.mark.parametrize(("whiten", "kind"), [(False, "centred"), (True, "whitened")])
def test_where_it_starts_is_told(whiten, kind, monkeypatch):
    told = []
    monkeypatch.setattr("nc_callbacks.callbacks.centred_mean_init.rank_zero_info", told.append)
    trainer(CentredMeanInit(whiten=whiten, scale=2.5)).fit(Classifier(), loader())
    assert told == [f"CentredMeanInit: 'head' starts at the {kind} class means times 2.5."]


def test_wrong_settings():
    with pytest.raises(ValueError, match="shrinkage must be a share"):
        CentredMeanInit(whiten=True, shrinkage=3.0)
    with pytest.raises(ValueError, match="those of the whitened head: pass whiten=True"):
        CentredMeanInit(shrinkage=0.1)
