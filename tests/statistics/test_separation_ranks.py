"""Scores of two processes are compared as those of one, also where one of them has none."""

import torch
import torch.distributed as dist

from nc_callbacks.statistics.separation import ScoreSeparation
from tests.functional.test_outside import by_pairs
from tests.processes import on_ranks

WITHIN = torch.linspace(0, 1, 31)
OUTSIDE = torch.linspace(-0.8, 0.6, 17)


def on_one_rank():
    rank = dist.get_rank()
    separation = ScoreSeparation()
    separation.update(WITHIN[rank::2], OUTSIDE if rank else OUTSIDE[:0])
    return [float(value) for value in separation.compute()]


def test_two_ranks_give_what_one_gives():
    expected = by_pairs(WITHIN.numpy(), OUTSIDE.numpy())
    for found in on_ranks(on_one_rank, 2):
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected, dtype=torch.float32))
