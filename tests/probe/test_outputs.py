"""Where the rows of a module's output are in what a model returns."""

import math
from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from nc_callbacks.probe.outputs import find_rows, logits_of, relation_now, tensors_of

TENSOR = torch.zeros(2)


@dataclass
class Output:
    loss: object
    logits: object


@pytest.mark.parametrize(
    ("output", "places"),
    [
        (TENSOR, {""}),
        ((TENSOR, {"a": TENSOR, "n": 3}), {"0", "1.a"}),
        (Output(TENSOR, TENSOR), {"logits", "loss"}),
        ({"loss": TENSOR, "logits": TENSOR}, {"logits", "loss"}),
        (SimpleNamespace(x=[TENSOR], y=TENSOR.long()), {"x.0"}),
        (namedtuple("Pair", "first second")(TENSOR, None), {"first"}),
        (None, set()),
    ],
)
def test_tensors_wherever_they_are(output, places):
    found = tensors_of(output)
    assert set(found) == places
    assert list(logits_of(found)) == (["logits"] if "logits" in places else list(found))


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize(
    "change",
    [
        lambda r: r,
        lambda r: r / 3.7,
        lambda r: 64 * r,
        lambda r: r.softmax(-1),
        lambda r: (r / 2).softmax(-1),
        lambda r: r.log_softmax(-1),
        lambda r: r.sigmoid(),
        lambda r: 30 * torch.tanh(r / 30),
        lambda r: r.to(torch.bfloat16).softmax(-1),
    ],
)
def test_rescaled(change, k):
    found = find_rows(rows(12, k), {"a": rows(12, k, seed=1), "b": change(rows(12, k))})
    assert (found.place, found.positions, found.order) == ("b", (12,), (0,))


@pytest.mark.parametrize(
    ("change", "scale"),
    [
        (lambda r: r, 1),
        (lambda r: r + 3, 1),
        (lambda r: r.softmax(-1), 1),
        (lambda r: 64 * r, 64),
        (lambda r: (r / 2).log_softmax(-1), 0.5),
        (lambda r: 2 * torch.tanh(r / 2), math.nan),
    ],
)
def test_scale(change, scale):
    assert find_rows(rows(12, 5), {"": change(rows(12, 5))}).scale == pytest.approx(scale, rel=1e-5, nan_ok=True)


@pytest.mark.parametrize("change", [lambda r: -r, lambda r: r.flip(0), lambda r: r.flip(1), lambda r: r**2, abs])
def test_other_rows(change):
    assert find_rows(rows(12, 5), {"": change(rows(12, 5))}) is None


@pytest.mark.parametrize(
    ("change", "positions", "order"),
    [
        (lambda r: r, (6, 6), (0, 1)),
        (lambda r: r.transpose(0, 1), (6, 6), (1, 0)),
        (lambda r: r.movedim(-1, 1), (6, 6), (0, 1)),
        (lambda r: r.permute(1, 2, 0), (6, 6), (1, 0)),
        (lambda r: r.flatten(0, 1), (36,), (0, 1)),
    ],
)
def test_positions(change, positions, order):
    found = find_rows(rows(6, 6, 3), {"": change(rows(6, 6, 3))})
    assert (found.positions, found.order) == (positions, order)


def test_single_row_and_empty_dimensions():
    assert find_rows(rows(1, 4), {"": rows(1, 4)[0]}).positions == (1,)
    assert find_rows(rows(3, 4), {"": rows(3, 4)[:, :, None, None]}).positions == (3,)


def test_a_part_of_the_rows():
    given = rows(3, 5, 4)
    found = find_rows(given, {"": given[torch.arange(3), torch.tensor([4, 0, 2])]})
    assert found.order is None
    assert found.rows.tolist() == [4, 5, 12]


class TestRelationNow:
    def now(self, given, returned, found=None):
        return relation_now(found or find_rows(rows(12, 5), {"a": rows(12, 5)}), given, {"a": returned})

    def test_scale(self):
        assert self.now(rows(12, 5, seed=2), 3 * rows(12, 5, seed=2)) == pytest.approx(3)
        assert self.now(rows(12, 5, seed=2), rows(12, 5, seed=3)) is None
        assert relation_now(find_rows(rows(12, 5), {"a": rows(12, 5)}), rows(12, 5), {"b": rows(12, 5)}) is None

    def test_positions(self):
        found = find_rows(rows(6, 7, 3), {"a": rows(6, 7, 3).transpose(0, 1)})
        longer = rows(9, 7, 3, seed=2)
        assert self.now(longer, longer.transpose(0, 1), found) == 1
        assert self.now(longer, longer, found) is None

    def test_selected_rows(self):
        given, last = rows(3, 5, 4), torch.tensor([4, 0, 2])
        found = find_rows(given, {"a": given[torch.arange(3), last]})
        other = rows(3, 6, 4, seed=2)
        assert self.now(other, other[torch.arange(3), last], found) == 1
        assert self.now(other, rows(3, 4, seed=3), found) is None

    @pytest.mark.parametrize("squash", [torch.sigmoid, lambda f: f.softmax(1)], ids=["sigmoid", "softmax"])
    def test_certain_probabilities(self, squash):
        found = find_rows(rows(12, 5), {"a": squash(rows(12, 5))})
        certain = 300 * rows(12, 5, seed=2)
        assert self.now(certain, squash(certain), found) == 1
        assert self.now(rows(12, 5, seed=2), squash(rows(12, 5, seed=3)), found) is None

    def test_few_or_infinite_numbers_say_nothing(self):
        assert self.now(rows(2, 5), rows(2, 5, seed=1)) == 1
        assert self.now(rows(12, 5) * torch.nan, rows(12, 5)) == 1
        assert self.now(rows(12, 5), rows(12, 5) * torch.nan) is None
