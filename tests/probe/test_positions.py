"""Rows of a classifier and of layers that are, or are not, the targets' positions."""

import pytest
import torch
from torch import nn

from tests.probe.common import check, read


class Tagger(nn.Module):
    """Sequence-first inside, samples first outside."""

    def __init__(self, returned, flat=False):
        super().__init__()
        torch.manual_seed(0)
        self.enc, self.head = nn.LSTM(6, 6), nn.Linear(6, 3)
        self.returned, self.flat = returned, flat

    def forward(self, x):
        h = self.enc(x.transpose(0, 1))[0]
        return self.returned(self.head(h.flatten(0, 1) if self.flat else h))


@pytest.mark.parametrize("samples", [10, 7])
@pytest.mark.parametrize(
    "returned",
    [lambda f: f.transpose(0, 1), lambda f: f.permute(1, 2, 0), lambda f: (f.transpose(0, 1) / 2).softmax(2)],
)
def test_sequence_first(samples, returned):
    x, y = torch.randn(samples, 7, 6), torch.arange(samples * 7).view(samples, 7) % 3
    model = Tagger(returned)
    batch, (weight, bias) = read(model, check(model, x, y, layers=["enc"]), x, y, ["enc"])
    hidden = model.enc(x.transpose(0, 1))[0].transpose(0, 1).flatten(0, 1)
    torch.testing.assert_close(batch.features["head"], hidden.detach())
    torch.testing.assert_close(batch.features["enc"], x.flatten(0, 1))
    torch.testing.assert_close(batch.outputs, hidden @ weight.T + bias)
    assert torch.equal(batch.targets, y.flatten())


def test_flattened_sequences():
    x, y = torch.randn(5, 7, 6), torch.arange(35).view(5, 7) % 3
    with pytest.raises(ValueError, match="do not go through the targets of shape"):
        check(Tagger(lambda f: f, flat=True), x, y)
    model = nn.Sequential(nn.Flatten(0, 1), nn.Linear(6, 3))
    assert check(model, x, y).order == ()


def test_rows_of_which_the_model_returns_some():
    x = torch.randn(5, 7, 6)
    model = Tagger(lambda f: f[-1])
    with pytest.raises(ValueError, match=r"returns 5 of the 35 rows.*nc_callbacks.batches.last_token"):
        check(model, x, torch.arange(5) % 3)


def test_rows_that_are_not_returned():
    x = torch.randn(7, 7, 6)
    with pytest.raises(ValueError, match=r"It cannot be told which of the rows of head 'head'"):
        check(Tagger(lambda f: f.argmax(2)), x, torch.zeros(7, 7, dtype=torch.long), "head")
