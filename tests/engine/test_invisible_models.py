"""Models that keep state outside of parameters and buffers train bit-identically with and without a look."""

from contextlib import ExitStack

import pytest
import torch

from nc_callbacks import NeuralCollapse
from tests.callbacks.common import loader, trainer
from tests.engine.stateful_models import (
    Closures,
    Counter,
    Generators,
    Globals,
    InPlace,
    Iterators,
    LateBuffer,
    LateHook,
    Logging,
    Merging,
    Objects,
    OfTheClass,
    Opening,
    Renormalised,
    Settings,
    reset,
)


def fitted(model, *callbacks, data=loader):
    reset()
    net = model()
    torch.manual_seed(1)
    fit = trainer(*callbacks, max_epochs=2)
    fit.fit(net, data())
    return net, {name: float(value) for name, value in fit.callback_metrics.items() if not name.startswith("nc/")}


KINDS = [
    *(Counter, OfTheClass, Globals, Generators, Iterators, Objects, Closures, InPlace, LateBuffer, LateHook),
    *(Renormalised, Merging, Settings, Logging),
]


def assert_identical(model, mode, head=None, **settings):
    callback = NeuralCollapse(mode=mode, head=head)
    (plain, logged), (watched, also_logged) = fitted(model, **settings), fitted(model, callback, **settings)
    assert len(callback.history) == 2
    assert plain.state_dict().keys() == watched.state_dict().keys()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, watched.state_dict()[name]), name
    assert logged == also_logged


# A weight that each forward pass shrinks is another one in the next trial.
@pytest.mark.filterwarnings("ignore:The classifier 'head' is no affine map")
@pytest.mark.parametrize("mode", ["epoch_end", pytest.param("online", marks=pytest.mark.slow)])
@pytest.mark.parametrize("model", KINDS)
def test_bit_identical(model, mode):
    assert_identical(model, mode)


@pytest.mark.parametrize("mode", ["epoch_end", "online"])
def test_a_file_that_is_read(mode, tmp_path):
    with ExitStack() as files:

        def make():
            model = Opening(tmp_path / "numbers")
            files.enter_context(model.file)
            return model

        assert_identical(make, mode)
