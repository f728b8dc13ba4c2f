"""The fixed head: its angles, what is found of it, and rare classes that keep directions of their own."""

import math

import pytest
import torch

import nc_callbacks.functional as F_nc
from nc_callbacks import DotRegression, NeuralCollapse, SimplexETFHead, WeightMeanAlignment
from nc_callbacks.transfer.etf_head import rows_apart
from tests.callbacks.common import Classifier, K, loader, trainer


@pytest.mark.parametrize(("k", "p"), [(2, 1), (4, 3), (5, 5), (10, 64), (100, 99), (100, 512)])
def test_simplex_wherever_there_is_one(k, p):
    rows = rows_apart(k, p)
    assert rows.shape == (k, p)
    gram = rows.double() @ rows.double().T
    expected = torch.full((k, k), -1 / (k - 1), dtype=torch.float64).fill_diagonal_(1)
    torch.testing.assert_close(gram, expected, rtol=0, atol=1e-6)
    assert F_nc.nc2_etf(rows) < 1e-5
    # Rows of a simplex add up to nothing, to the rounding of float32.
    assert rows.double().sum(0).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("k", "p", "cosine"),
    [
        (5, 2, math.cos(2 * math.pi / 5)),  # the pentagon
        (6, 3, 0.0),  # the octahedron
        (7, 3, math.cos(math.radians(77.8695))),  # Tammes' problem
        (12, 3, 1 / math.sqrt(5)),  # the icosahedron
        (8, 4, 0.0),  # the cross-polytope
    ],
)
def test_many_classes_are_as_far_apart_as_is_known(k, p, cosine):
    rows = rows_apart(k, p)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(k))
    assert (rows @ rows.T).fill_diagonal_(-1).max() < cosine + 2e-3


def test_rows_on_a_line_stay_of_length_one():
    # They can push one another nowhere.
    assert rows_apart(3, 1).abs().tolist() == [[1.0]] * 3


def test_rotation_follows_the_seed():
    assert torch.equal(rows_apart(4, 9, seed=3), rows_apart(4, 9, seed=3))
    assert not torch.allclose(rows_apart(4, 9, seed=3), rows_apart(4, 9, seed=4))


def test_outputs_are_cosines_whatever_the_length():
    head = SimplexETFHead(6, 4, scale=2.0)
    x = torch.randn(5, 6)
    expected = 2 * torch.nn.functional.cosine_similarity(x[:, None], head.rows.weight[None], dim=2)
    torch.testing.assert_close(head(x), expected)
    torch.testing.assert_close(head(30 * x), expected)
    assert head(torch.zeros(1, 6)).tolist() == [[0.0] * 4]


def test_dot_regression_and_its_gradient():
    outputs = torch.tensor([[0.2, 0.9, -1.0], [0.5, 0.0, 0.3]], requires_grad=True)
    loss = DotRegression()(outputs, torch.tensor([1, 2]))
    assert loss.item() == pytest.approx((0.1**2 + 0.7**2) / 4)
    loss.backward()
    torch.testing.assert_close(outputs.grad, torch.tensor([[0.0, -0.05, 0.0], [0.0, 0.0, -0.35]]))


class Fixed(Classifier):
    def __init__(self):
        super().__init__()
        self.head = SimplexETFHead(8, K)
        self.loss = DotRegression()

    def training_step(self, batch, batch_idx):
        return self.loss(self(batch[0]), batch[1])


def test_training_with_callbacks():
    model, collapse, alignment = Fixed(), NeuralCollapse(), WeightMeanAlignment()
    before = model.head.rows.weight.clone()
    trainer(collapse, alignment, max_epochs=8).fit(model, loader(counts=(60, 40, 6, 4)))
    assert torch.equal(model.head.rows.weight, before)
    assert collapse.head == "head.rows"
    assert collapse.latest["nc/train/nc2_etf_weights"] < 1e-5
    cosine = [record["nc/train/wm_cosine"] for record in alignment.history]
    assert cosine[-1] > cosine[0] + 0.2


@pytest.mark.parametrize(("k", "p"), [(1, 4), (3, 0)])
def test_too_little_is_refused(k, p):
    with pytest.raises(ValueError, match=f"at least 2 classes and 1 feature, got {k} and {p}"):
        rows_apart(k, p)


@pytest.mark.parametrize("k", [4, 9])
def test_rows_lie_on_the_default_device(k):
    with torch.device("meta"):
        assert rows_apart(k, 5).device.type == "meta"
    assert rows_apart(k, 5).device.type == "cpu"
