"""Layers that get their shape in their first forward pass."""

import pytest
from torch import nn

from nc_callbacks import CentredMeanInit, NeuralCollapse
from tests import reference
from tests.callbacks.common import samples
from tests.engine.stateful_models import Net
from tests.engine.test_invisible_models import assert_identical, fitted

X, Y = samples()


class LazyBody(Net):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.Tanh())


class LazyHead(Net):
    def __init__(self):
        super().__init__()
        self.head = nn.LazyLinear(self.head.out_features)


@pytest.mark.parametrize("mode", ["epoch_end", "online"])
@pytest.mark.parametrize("head", [None, "head"])
@pytest.mark.parametrize("model", [LazyBody, LazyHead])
def test_are_found_and_get_their_first_values_as_without_a_callback(model, head, mode):
    assert_identical(model, mode, head)


def test_have_the_numbers_of_their_features():
    callback = NeuralCollapse()
    model, _ = fitted(LazyHead, callback)
    features = model.body(X).detach().double().numpy()
    moments = reference.moments(features, Y.numpy(), model.head.out_features)
    weight = model.head.weight.detach().double().numpy()
    assert callback.head == "head"
    assert callback.latest["nc/train/nc1"] == pytest.approx(reference.nc1(moments.within, moments.means), rel=1e-4)
    assert callback.latest["nc/train/nc3"] == pytest.approx(reference.nc3(weight, moments.means), rel=1e-4)


@pytest.mark.parametrize("model", [LazyBody, LazyHead])
def test_cannot_be_started_from_class_means(model):
    with pytest.raises(ValueError, match=r"\(LazyLinear\) gets its shape in its first forward pass.*no features yet"):
        fitted(model, CentredMeanInit())
