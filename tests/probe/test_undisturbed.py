"""Leaving no trace."""

import random
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from nc_callbacks import probe


class TestUndisturbed:
    @pytest.mark.parametrize("fails", [False, True])
    def test_leaves_no_trace(self, fails):
        class Counting(nn.Module):
            """Changes buffers in eval mode too, in place and by assignment."""

            def __init__(self):
                super().__init__()
                self.register_buffer("calls", torch.zeros(1))
                self.register_buffer("last", torch.zeros(2))
                self.register_buffer("scale", None)

            def forward(self, x):
                self.scale = x.std() if self.scale is None else self.scale
                self.calls += 1
                self.last = x[0].clone()
                return x

        model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(), Counting(), nn.Linear(2, 2))
        model[1].eval()
        flags = [module.training for module in model.modules()]
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        states = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002
        with nullcontext() if not fails else pytest.raises(RuntimeError, match="in the middle"):  # noqa: SIM117
            with probe.undisturbed(model):
                assert not any(module.training for module in model.modules())
                assert not torch.is_grad_enabled()
                model(torch.randn(4, 2))
                random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
                if fails:
                    raise RuntimeError("in the middle")
        assert [module.training for module in model.modules()] == flags
        assert model[2].scale is None
        assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
        after = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002
        assert after == states
        assert torch.is_grad_enabled()

    def test_draws_the_same_each_time(self):
        drawn = []
        for _ in range(2):
            torch.rand(3)
            with probe.undisturbed(nn.Linear(1, 1)):
                drawn.append((random.random(), float(np.random.rand()), float(torch.rand(1))))  # noqa: NPY002
        assert drawn[0] == drawn[1]
