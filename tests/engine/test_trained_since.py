"""What stands after the classifier, and changes nothing until training has begun."""

import pytest
import torch
from torch import nn

from nc_callbacks import NeuralCollapse, QuasiInterpolation
from tests.callbacks.common import Classifier, loader, trainer


class Changed(Classifier):
    """Its outputs go through a function that has numbers of its own, which are others from the second epoch on."""

    def __init__(self, change, first, later):
        super().__init__()
        self.change, self.later = change, later
        self.register_buffer("numbers", first.clone())

    def forward(self, x):
        return self.change(super().forward(x), self.numbers)

    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            self.numbers.copy_(self.later)


@pytest.fixture(params=["epoch_end", "online"])
def mode(request):
    return request.param


def keys_of(callback, model):
    trainer(callback, max_epochs=2).fit(model, loader())
    return [row["epoch"] for row in callback.history if "nc/train/nc1" in row or "nc/train/sqi_ratio" in row]


ZEROS, ONES = torch.zeros(4), torch.ones(4)
MINUS = torch.tensor([0, 0, 0, -torch.inf])

OTHERS = {
    "a bias for each class": (torch.add, ZEROS, torch.arange(4.0)),
    "a scale for each class": (torch.mul, ONES, torch.arange(1.0, 5)),
    "a part of another output": (lambda f, a: f + a * f.roll(1, 1), ZEROS, ONES),
    "a class left out": (torch.add, ZEROS, MINUS),
    "a softmax of other outputs": (lambda f, a: (f + a).softmax(1), ZEROS, torch.arange(4.0)),
}
THE_SAME = {
    "one scale": (torch.mul, torch.ones(1), torch.full((1,), 3.0)),
    "one bias": (torch.add, torch.zeros(1), torch.full((1,), 3.0)),
    "a softmax that is certain": (lambda f, a: (a * f).softmax(1), torch.ones(1), torch.full((1,), 1e4)),
    "a sigmoid that is certain": (lambda f, a: (a * f).sigmoid(), torch.ones(1), torch.full((1,), 1e2)),
    "a bound": (lambda f, a: a * (f / a).tanh(), torch.full((1,), 30.0), torch.full((1,), 0.01)),
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS.keys())
def test_outputs_that_are_no_longer_the_classifiers_are_not_measured(change, mode):
    callback = NeuralCollapse(mode=mode)
    with pytest.warns(UserWarning, match="epoch 2 failed.*no longer what the classifier 'head' gives.*Pass head="):
        assert keys_of(callback, Changed(*change)) == [0]


@pytest.mark.filterwarnings("error:.*no longer what")
@pytest.mark.parametrize("change", THE_SAME.values(), ids=THE_SAME.keys())
def test_those_that_say_the_same_are(change, mode):
    assert keys_of(NeuralCollapse(mode=mode), Changed(*change)) == [0, 1]


def test_a_scale_that_is_learned_is_not_left_out_of_errors(mode):
    callback = QuasiInterpolation(outputs="softmax", mode=mode)
    with pytest.warns(UserWarning, match="epoch 2 failed.*'head' would be measured, but Changed returns them times 3"):
        assert keys_of(callback, Changed(*THE_SAME["one scale"])) == [0]


class Bent(nn.Linear):
    """A linear layer, and a curve beside it that is there from the second epoch on."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("numbers", torch.zeros(1))

    def forward(self, x):
        return super().forward(x) + self.numbers * super().forward(x).square()


def test_a_classifier_that_is_affine_no_longer_has_no_weight(mode):
    model, callback = Changed(torch.add, torch.zeros(1), torch.zeros(1)), NeuralCollapse(mode=mode)
    model.head = Bent(8, 4)
    model.numbers, model.later = model.head.numbers, torch.ones(1)
    with pytest.warns(UserWarning, match="'head' is no affine map of its input and so has no weight"):
        assert keys_of(callback, model) == [0, 1]
    assert ["nc/train/nc3" in row for row in callback.history] == [True, False]
    assert ["nc/train/accuracy" in row for row in callback.history] == [True, True]
