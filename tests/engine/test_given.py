"""Inputs that a validation step gives the model: where looks give it others, a warning says so once."""

import warnings

import pytest
import torch

from nc_callbacks import NeuralCollapse, WeightMeanAlignment
from tests.callbacks.common import Classifier, loader, trainer


class Stepping(Classifier):
    """Does something with the inputs in its steps."""

    def __init__(self, change):
        super().__init__()
        self.change, self.hooks = change, []

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self(self.change(batch[0])), batch[1])

    def validation_step(self, batch, batch_idx):
        self.hooks.append(len(self._forward_pre_hooks))
        self(self.change(batch[0]))


def told(model, *callbacks, **settings):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(*(callbacks or [NeuralCollapse()]), max_epochs=2, **settings).fit(model, loader(), loader(1))
    return [str(warning.message) for warning in caught if "gives the model other inputs" in str(warning.message)]


@pytest.mark.parametrize("settings", [{}, {"num_sanity_val_steps": 0}])
def test_scaled_inputs_are_told_once(settings):
    model = Stepping(lambda x: (x - 1) / 2)
    (message,) = told(model, NeuralCollapse(), WeightMeanAlignment(), **settings)
    assert message.startswith("The validation_step of Stepping gives the model other inputs than the batch holds ((")
    assert "batch_fn=..., a function from a batch to (inputs, targets)" in message
    first, *others = model.hooks
    assert (first, set(others)) == (1, {0})


@pytest.mark.filterwarnings("error:The validation_step of")
def test_is_an_error_to_who_makes_warnings_errors():
    with pytest.raises(UserWarning, match="gives the model other inputs"):
        trainer(NeuralCollapse()).fit(Stepping(lambda x: x + 1), loader(), loader(1))


@pytest.mark.parametrize(
    "change",
    [lambda x: x, lambda x: x.clone(), lambda x: x.bfloat16().float(), lambda x: x.view(len(x), -1)],
    ids=["as they are", "copied", "rounded", "in another shape"],
)
def test_inputs_that_say_the_same(change):
    assert told(Stepping(change)) == []


def test_what_training_alone_does_is_its_own_affair():
    class Augmented(Stepping):
        def validation_step(self, batch, batch_idx):
            self(batch[0])

    assert told(Augmented(lambda x: x + 1)) == []


def test_who_says_how_a_batch_is_read_knows():
    model = Stepping(lambda x: x - 1)
    assert told(model, NeuralCollapse(batch_fn=lambda batch: (batch[0] - 1, batch[1]))) == []
    assert set(model.hooks) == {0}
    assert told(Stepping(lambda x: x - 1), NeuralCollapse(forward_fn=lambda model, x: model(x - 1))) == []


def test_a_step_that_calls_a_part():
    class Parts(Stepping):
        def validation_step(self, batch, batch_idx):
            self.head(self.body(self.change(batch[0])))

    assert told(Parts(lambda x: x - 1)) == []


def test_no_hook_stays_after_an_exception():
    class Failing(Stepping):
        def validation_step(self, batch, batch_idx):
            raise RuntimeError("in validation")

    model = Failing(lambda x: x)
    with pytest.raises(RuntimeError, match="in validation"):
        told(model)
    assert not model._forward_pre_hooks


def test_weights_are_bit_identical():
    def run(*callbacks):
        model = Stepping(lambda x: x - 1)
        torch.manual_seed(3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer(*callbacks, max_epochs=2).fit(model, loader(), loader(1))
        return model.state_dict() | {"next": torch.rand(3)}

    plain, watched = run(), run(NeuralCollapse())
    assert all(torch.equal(tensor, watched[name]) for name, tensor in plain.items())
