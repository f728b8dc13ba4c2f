"""The best scale of logits against SciPy and cases known on paper."""

import math

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch.nn.functional import cross_entropy

from nc_callbacks.transfer.scale import best_scale


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("k", [2, 30])
def test_agrees_with_scipy(k, size):
    generator = torch.Generator().manual_seed(k)
    targets = torch.randint(k, (200,), generator=generator)
    logits = torch.randn(200, k, generator=generator, dtype=torch.float64)
    logits[torch.arange(200), targets] += 1.0
    found = minimize_scalar(lambda s: cross_entropy(s * logits, targets).item(), bounds=(0, 50), method="bounded")
    assert best_scale(size * logits, targets) * size == pytest.approx(found.x, rel=1e-4)


def test_odds_known_on_paper():
    # m of n samples on the side of their class: probability m/n, so s = log(m / (n − m)).
    logits = torch.tensor([[1.0, 0.0]] * 10).double()
    assert best_scale(logits, torch.tensor([0] * 8 + [1] * 2)) == pytest.approx(math.log(4), rel=1e-6)


def test_separated_samples_get_the_loss_of_one_undecided_sample():
    logits = torch.tensor([[2.0, 0.0], [0.0, 3.0], [5.0, 0.0]]).double()
    targets = torch.tensor([0, 1, 0])
    scale = best_scale(logits, targets)
    assert cross_entropy(scale * logits, targets).item() == pytest.approx(math.log(2) / 3, rel=1e-6)


def test_samples_with_equal_logits_do_not_count_against_separation():
    logits = torch.tensor([[2.0, 0.0], [0.0, 3.0], [0.0, 0.0]]).double()
    targets = torch.tensor([0, 1, 0])
    total = 3 * cross_entropy(best_scale(logits, targets) * logits, targets).item()
    assert total - math.log(2) == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.parametrize("logits", [torch.zeros(4, 3), -torch.eye(3)[[0, 1, 2, 0]]])
def test_useless_logits_are_refused(logits):
    with pytest.raises(ValueError, match="The scale cannot be fitted"):
        best_scale(logits.double(), torch.tensor([0, 1, 2, 0]))


@pytest.mark.parametrize("share", [0.75, 1.0])
def test_sums_over_ranks_count_the_samples_of_all(share):
    logits = torch.tensor([[1.0, 0.0], [2.0, 0.5], [1.0, -1.0], [0.5, 0.0]]).double()
    targets = (torch.arange(4) >= 4 * share).long()
    expected = best_scale(logits.repeat(3, 1), targets.repeat(3))
    # Three ranks with the same samples.
    assert best_scale(logits, targets, lambda sums: 3 * sums) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8, torch.float32, torch.bool])
def test_labels_of_any_type_that_holds_integers(dtype):
    logits, targets = torch.tensor([[1.0, 0.0]] * 10), torch.tensor([0] * 8 + [1] * 2)
    assert best_scale(logits, targets.to(dtype)) == pytest.approx(math.log(4), rel=1e-6)


@pytest.mark.parametrize("wrong", [-1, 2, 0.5, math.nan])
def test_what_is_no_label_raises_on_every_rank(wrong):
    logits, targets = torch.eye(2).repeat(3, 1), torch.tensor([0, 1] * 3)
    with pytest.raises(ValueError, match=r"targets must be class indices in 0…1, got \[.*\] \(1 in all\)"):
        best_scale(logits, torch.tensor([0, 1, 0, 1, 0, wrong]))
    # The last of the sums counts them: here of another rank.
    with pytest.raises(ValueError, match=r"got others on another rank \(2 in all\)"):
        best_scale(
            logits, targets, lambda sums: sums + 2 * (len(sums) == 3) * torch.tensor([0.0, 0.0, 1.0][: len(sums)])
        )


@pytest.mark.parametrize(("logits", "targets"), [((3,), (3,)), ((3, 1), (3,)), ((3, 2), (2,)), ((3, 2), (3, 1))])
def test_shapes_that_do_not_fit_raise(logits, targets):
    with pytest.raises(ValueError, match=r"logits must be \(n, k\) with k ≥ 2, targets \(n,\)"):
        best_scale(torch.zeros(logits), torch.zeros(targets).long())
