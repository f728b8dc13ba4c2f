"""verify=True: what the first look has changed is named, once."""

import functools
import warnings

import pytest
import torch

from nc_callbacks import NeuralCollapse, WeightMeanAlignment
from tests.callbacks.common import Classifier, loader, trainer


@functools.lru_cache
def looked_up(key):
    return key


class Unkept(Classifier):
    """Numbers from a Python generator, which has no copy."""

    def __init__(self):
        super().__init__()
        self.noise = (0.1 * step for step in range(1000))

    def forward(self, x):
        return super().forward(x + next(self.noise))


class Caching(Classifier):
    def forward(self, x):
        return super().forward(x * (1 + 0 * looked_up(self.tally.calls)))


def told(model, *callbacks, **settings):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(*callbacks, max_epochs=3).fit(model, loader(), **settings)
    return [str(warning.message) for warning in caught if "verify=True" in str(warning.message)]


@pytest.mark.parametrize("mode", ["epoch_end", "online"])
def test_what_cannot_be_kept_is_named(mode):
    (message, *more) = told(Unkept(), NeuralCollapse(head="head", verify=True, mode=mode))
    assert "the look changed model.noise" in message
    assert len(more) <= 1


@pytest.mark.parametrize("hidden", [0, 1, 2])
def test_of_many_the_first_are_named(hidden, monkeypatch):
    said = told(Unkept(), NeuralCollapse(head="head", verify=True))[0]
    named = said.partition("the look changed ")[2].partition(". Training")[0].split(", ")
    shown = len(named) - hidden
    monkeypatch.setattr("nc_callbacks.engine.verify._SHOWN", shown)
    more = f" and {hidden} more" if hidden else ""
    expected = f"the look changed {', '.join(named[:shown])}{more}. Training goes on"
    assert expected in told(Unkept(), NeuralCollapse(head="head", verify=True))[0]


def test_a_cache_is_named():
    assert "looked_up of tests.engine.test_verify" in told(Caching(), NeuralCollapse(verify=True))[0]


def test_nothing_is_said_where_nothing_changed():
    assert told(Classifier(), NeuralCollapse(verify=True), WeightMeanAlignment()) == []
    assert told(Unkept(), NeuralCollapse(head="head")) == []


def test_random_numbers_that_a_loader_draws():
    class Drawing(Classifier):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            torch.rand(1)
            return batch

    assert told(Drawing(), NeuralCollapse(verify=True)) == []
