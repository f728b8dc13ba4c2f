"""Losses against their definitions."""

import numpy as np
import torch

from nc_callbacks.experiments.losses import OneHotSquaredError


def test_one_hot_squared_error():
    generator = np.random.default_rng(0)
    outputs, targets = generator.normal(size=(9, 4)), generator.integers(0, 4, 9)
    total = sum((outputs[i, c] - (c == targets[i])) ** 2 for i in range(9) for c in range(4))
    loss = OneHotSquaredError()(torch.from_numpy(outputs), torch.from_numpy(targets))
    np.testing.assert_allclose(loss.item(), total / 36)
