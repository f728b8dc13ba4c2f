"""Two and three gloo processes fit the head, the scale and the ranking that one fits."""

import pytest
import torch

from tests.processes import on_ranks
from tests.transfer.ranks_of_heads import find, ignoring, rank_with_failures


@pytest.mark.parametrize("processes", [2, 3])
def test_ranks_find_what_one_process_finds(processes):
    one, found = find(), on_ranks(find, processes, as_torchrun=False)
    for several in found:
        assert several.keys() == one.keys()
        for name, expected in one.items():
            torch.testing.assert_close(several[name], expected, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
            assert torch.equal(several[name], found[0][name])


def test_ranks_agree_on_backbones_that_fail_on_one_of_them():
    (first, raised), (second, raised_there) = on_ranks(rank_with_failures, 2, as_torchrun=False)
    assert first == second
    assert [(name, error) for name, _, error in first if error] == [
        ("a", "RuntimeError: bad on rank 0"),
        ("b", "RuntimeError: bad on rank 1"),
        ("absent", "FileNotFoundError: absent on rank 0"),
    ]
    assert {name for name, accuracy, error in first if not error and float(accuracy) > 0} == {"good", "tanh"}
    assert (raised, raised_there) == ("it failed on another rank", "unreadable on rank 1")


def test_ranks_leave_out_the_same_targets():
    means, *scores = ignoring()
    for found_means, *found in on_ranks(ignoring, 2, as_torchrun=False):
        torch.testing.assert_close(found_means, means)
        assert found == pytest.approx(scores, rel=1e-5)
