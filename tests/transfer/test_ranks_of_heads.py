"""Two and three gloo processes fit the head, the scale and the ranking that one fits."""

import pytest
import torch

from tests.processes import on_ranks
from tests.transfer.ranks_of_heads import find


@pytest.mark.parametrize("processes", [2, 3])
def test_ranks_find_what_one_process_finds(processes):
    one, found = find(), on_ranks(find, processes, as_torchrun=False)
    for several in found:
        assert several.keys() == one.keys()
        for name, expected in one.items():
            torch.testing.assert_close(several[name], expected, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
            assert torch.equal(several[name], found[0][name])
