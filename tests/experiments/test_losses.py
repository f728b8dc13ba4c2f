"""Losses against their definitions."""

import numpy as np
import pytest
import torch
from torch import nn

from nc_callbacks.experiments.losses import GeneralisedCrossEntropy, OneHotSquaredError


def test_one_hot_squared_error():
    generator = np.random.default_rng(0)
    outputs, targets = generator.normal(size=(9, 4)), generator.integers(0, 4, 9)
    total = sum((outputs[i, c] - (c == targets[i])) ** 2 for i in range(9) for c in range(4))
    loss = OneHotSquaredError()(torch.from_numpy(outputs), torch.from_numpy(targets))
    np.testing.assert_allclose(loss.item(), total / 36)
    summed = OneHotSquaredError("sum")(torch.from_numpy(outputs), torch.from_numpy(targets))
    np.testing.assert_allclose(summed.item(), total / 9)
    with pytest.raises(ValueError, match="over_classes must be 'mean' or 'sum', got 'none'"):
        OneHotSquaredError("none")


def reference_loss(outputs, targets, alpha, epsilon):
    """Eq. 4 and 5 of Seddik & Tamaazousti, sample by sample."""
    n, k = outputs.shape
    total = 0.0
    for f, c in zip(outputs, targets, strict=True):
        log_p = f - np.log(np.sum(np.exp(f)))
        for label in range(k):
            y = alpha[c] * abs((label == c) - epsilon) / (1 + (k - 2) * epsilon)
            total -= y * log_p[label]
    return total / n


@pytest.mark.parametrize("epsilon", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("balanced", [False, True])
def test_generalised_cross_entropy(balanced, epsilon):
    generator = np.random.default_rng(0)
    outputs, targets = generator.normal(size=(20, 4)), np.repeat([0, 1, 2, 3], [10, 6, 3, 1])
    counts = np.bincount(targets)
    alpha = 20 / (4 * counts) if balanced else np.ones(4)
    loss = GeneralisedCrossEntropy(balanced, epsilon)
    loss.set_class_counts(torch.from_numpy(counts))
    value = loss(torch.from_numpy(outputs), torch.from_numpy(targets))
    np.testing.assert_allclose(value.item(), reference_loss(outputs, targets, alpha, epsilon), rtol=1e-6)


def test_without_balance_and_epsilon_it_is_cross_entropy():
    outputs = torch.randn(30, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.arange(30) % 7
    value = GeneralisedCrossEntropy(balanced=False)(outputs, targets)
    torch.testing.assert_close(value, nn.functional.cross_entropy(outputs, targets), rtol=1e-14, atol=0)


def test_class_without_samples_and_bad_input():
    loss = GeneralisedCrossEntropy()
    with pytest.raises(ValueError, match="needs the class counts"):
        loss(torch.zeros(2, 3), torch.tensor([0, 1]))
    loss.set_class_counts(torch.tensor([30, 0, 10]))
    # k is the number of classes seen: α_c = n / (2 n_c).
    assert loss.alpha.tolist() == pytest.approx([40 / 60, 0, 2])
    with pytest.raises(ValueError, match=r"epsilon must lie in \[0, 1\), got 1"):
        GeneralisedCrossEntropy(epsilon=1)
