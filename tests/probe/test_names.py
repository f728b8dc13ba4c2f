"""Modules by name."""

import pytest
import torch
from torch import nn

from nc_callbacks import probe


class TestNamedHead:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1))

    def test_unknown_name_lists_the_candidates(self):
        with pytest.raises(ValueError, match=r"head 'fc' is not a module of Sequential.*'0', '2'"):
            probe.named_head(self.model, "fc")

    def test_module_without_weight(self):
        with pytest.raises(ValueError, match=r"head '1' \(ReLU\) has no weight matrix.*Candidates: '0', '2'"):
            probe.named_head(self.model, "1")

    def test_single_output(self):
        with pytest.raises(ValueError, match=r"has 1 output; neural collapse compares at least 2"):
            probe.named_head(self.model, "2")

    def test_names_inside_a_compiled_module(self):
        compiled = torch.compile(nn.Sequential(nn.Linear(6, 4)))
        model = nn.ModuleDict({"net": compiled})
        assert probe.named_head(model, "net.0") is compiled._orig_mod[0]
