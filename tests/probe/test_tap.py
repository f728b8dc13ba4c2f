"""Capturing features."""

import pytest
import torch
from torch import nn

from nc_callbacks import probe


class TestTap:
    def test_layers_flattened_or_pooled(self):
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(16, 3))
        x, y = torch.randn(5, 1, 4, 4), torch.zeros(5, dtype=torch.long)
        before = model[0](x).detach()
        for pool, expected in ((None, before.flatten(1)), ("mean", before.mean((2, 3)))):
            with probe.Tap(model, "3", ["1"], pool) as tap:
                model(x)
                # The ReLU works in place; what is captured is its input.
                torch.testing.assert_close(tap.read(y).features["1"], expected)

    def test_sequences(self):
        model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
        with probe.Tap(model, "1") as tap:
            model(torch.randn(2, 5, 4))
            batch = tap.read(torch.zeros(2, 5, dtype=torch.long))
        assert batch.features["1"].shape == (10, 6)
        assert batch.outputs.shape == (10, 3)
        assert batch.targets.shape == (10,)

    def test_a_layer_that_does_not_run(self):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.extra = nn.Linear(6, 3), nn.Linear(2, 2)

            def forward(self, x):
                return self.first(x)

        model = Model()
        with probe.Tap(model, "first", ["extra"]) as tap:
            model(torch.ones(2, 6))
            with pytest.raises(ValueError, match="Module 'extra' ran 0 times in one forward pass"):
                tap.read(torch.zeros(2, dtype=torch.long))

    def test_a_head_that_runs_twice(self):
        model = nn.Sequential(nn.Linear(3, 3))
        with probe.Tap(model, "0") as tap:
            model(model(torch.ones(2, 3)))
            with pytest.raises(ValueError, match="Module '0' ran 2 times"):
                tap.read(torch.zeros(2, dtype=torch.long))

    def test_rows_that_do_not_match_targets(self):
        model = nn.Sequential(nn.Linear(4, 3))
        with probe.Tap(model, "0") as tap:
            model(torch.ones(2, 4))
            with pytest.raises(ValueError, match=r"input of shape \(2, 4\) for targets of shape \(3,\)"):
                tap.read(torch.zeros(3, dtype=torch.long))

    def test_hooks_are_removed(self):
        model = nn.Sequential(nn.Linear(4, 3))
        with pytest.raises(RuntimeError, match="stop"), probe.Tap(model, "0"):
            raise RuntimeError("stop")
        assert not model[0]._forward_hooks
        assert not model[0]._forward_pre_hooks

    def test_what_the_model_overwrites_in_place(self):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.block = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4))
                self.head = nn.Linear(4, 3)

            def forward(self, x):
                return self.head(self.block(x)).mul_(3)

        model, x = Model(), torch.randn(5, 4)
        with probe.Tap(model, "head", ["block"]) as tap:
            scaled = model(x.clone())
            batch = tap.read(torch.zeros(5, dtype=torch.long))
        assert torch.equal(batch.features["block"], x)
        torch.testing.assert_close(batch.outputs * 3, scaled)

    def test_views_do_not_keep_their_storage(self):
        model = nn.Sequential(nn.Linear(4, 3))
        tokens = torch.randn(5, 197, 4)
        with probe.Tap(model, "0") as tap:
            model(tokens[:, 0])
            features = tap.read(torch.zeros(5, dtype=torch.long)).features["0"]
        assert features.untyped_storage().nbytes() == features.nbytes
