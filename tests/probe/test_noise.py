"""Models that draw random numbers in eval mode too: from global generators, and from ones that nobody sets back."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from tests.probe.common import check


class Noisy(nn.Module):
    """Adds noise to its features; `returned` makes the output of them."""

    def __init__(self, returned=lambda m, h: m.head(h), draw=lambda shape: np.random.default_rng().normal(size=shape)):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12))
        self.head, self.other = nn.Linear(12, 4), nn.Linear(12, 4)
        self.returned, self.draw = returned, draw

    def forward(self, x):
        h = self.embed(x)
        return self.returned(self, h + torch.as_tensor(self.draw(h.shape), dtype=h.dtype))


GENERATORS = {
    "a new one each time": lambda shape: np.random.default_rng().normal(size=shape),
    "numpy": lambda shape: np.random.normal(size=shape),  # noqa: NPY002 - what models do
    "python": lambda shape: np.reshape([random.gauss(0, 1) for _ in range(np.prod(shape))], shape),
    "torch": torch.randn,
}


@pytest.mark.parametrize("draw", GENERATORS.values(), ids=GENERATORS)
@pytest.mark.parametrize("head", [None, "head"])
def test_noise_in_the_features(draw, head):
    found = check(Noisy(draw=draw), head=head)
    assert (found.name, found.num_features, found.affine) == ("head", 12, True)


@pytest.mark.parametrize("draw", GENERATORS.values(), ids=GENERATORS)
def test_noise_goes_on_as_if_none_had_been_drawn(draw):
    model = Noisy(draw=draw)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    check(model)
    assert random.getstate() == states[0]
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), states[1], strict=True))  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])


@pytest.mark.parametrize("squash", [lambda f: f, lambda f: f.softmax(1), lambda f: f / 0.07])
def test_noise_and_rescaled_logits(squash):
    assert check(Noisy(lambda m, h: (h, {"logits": squash(m.head(h))}))).name == "head"


class Chain(Noisy):
    """Its classifier runs on logits of another, and both are returned."""

    def __init__(self, returned):
        super().__init__(returned)
        self.last = nn.Linear(4, 4)


def test_noise_and_the_last_of_a_chain():
    def both(m, h):
        coarse = m.head(h)
        return coarse, m.last(coarse.relu())

    model = Chain(both)
    assert check(model).name == "last"
    with pytest.raises(ValueError, match="head 'head' gives features: 'last' runs on them"):
        check(model, head="head")


def test_noise_and_features_that_the_model_returns():
    def features(m, h):
        coarse = m.head(h)
        m.last(coarse)
        return coarse

    with pytest.raises(ValueError, match="The model returns what 'head' gives, on which 'last' runs"):
        check(Chain(features))


def test_noise_and_two_classifiers():
    with pytest.raises(ValueError, match="Several modules can be the classifier: 'head', 'other'"):
        check(Noisy(lambda m, h: m.head(h) + m.other(h)))
    with pytest.raises(ValueError, match="Several modules can be the classifier: 'head', 'other'"):
        check(Noisy(lambda m, h: (m.head(h), m.other(h))))


def test_noise_and_a_classifier_that_the_model_does_not_return():
    def beside(m, h):
        m.other(h)
        return m.head(h)

    assert check(Noisy(beside)).name == "head"
    with pytest.raises(ValueError, match=r"The output of head 'other' is not in what the model returns .* 'head'"):
        check(Noisy(beside), head="other")


def test_noise_and_a_part_of_the_output():
    assert check(Noisy(lambda m, h: m.head(h) + m.other(h)), head="other").name == "other"
