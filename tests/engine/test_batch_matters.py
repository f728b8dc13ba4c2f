"""Features that depend on the other samples of a batch."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nc_callbacks import NeuralCollapse
from tests.callbacks.common import Classifier, samples, trainer


class Body(Classifier):
    def __init__(self, layer):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), layer)


class OverTheBatch(nn.Module):
    """Attention among the samples of a batch."""

    def forward(self, x):
        return (x @ x.T).softmax(1) @ x


class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


class OfSixteen(nn.Module):
    """Takes batches of one size alone."""

    def forward(self, x):
        return x + torch.zeros(16, 1) if len(x) > 1 else x


def fit(layer):
    data = DataLoader(TensorDataset(*samples()), 16, shuffle=True)
    callback = NeuralCollapse()
    trainer(callback, max_epochs=1).fit(Body(layer), data)
    return callback


@pytest.mark.parametrize(
    "layer",
    [nn.BatchNorm1d(8, track_running_stats=False), OverTheBatch()],
    ids=["batch norm without running statistics", "attention among samples"],
)
def test_is_said_once(layer):
    with pytest.warns(UserWarning, match="at 'head' depend on the other samples of its batch") as warned:
        assert fit(layer).latest
    assert sum("depend on the other" in str(warning.message) for warning in warned) == 1


@pytest.mark.filterwarnings("error:.*depend on the other")
@pytest.mark.parametrize(
    "layer", [nn.BatchNorm1d(8), nn.LayerNorm(8), Noisy(), OfSixteen()], ids=lambda layer: type(layer).__name__
)
def test_nothing_is_said_where_they_do_not_or_it_cannot_be_tried(layer):
    assert fit(layer).latest
