"""Logistic regressions that are fitted to the end, and the choice of their penalty."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from nc_callbacks.experiments.logistic import fitted, logistic_accuracy, logistic_logits, minimised
from tests.transfer.test_head import K, data


def gradient(logits, features, targets, c):
    """Of the loss by the weights, from the outputs alone: XᵀR/n + W/(Cn), W found from outputs of basis vectors."""
    x = features.double()
    x = (x - x.mean(0)) / x.std(0, correction=0)
    raw = features.double().mean(0), features.double().std(0, correction=0)
    offset = logits(raw[0][None].float()).double()
    basis = raw[0] + torch.eye(len(raw[0]), dtype=torch.float64) * raw[1]
    weight = logits(basis.float()).double() - offset
    residual = (x @ weight + offset).softmax(1) - torch.nn.functional.one_hot(targets, weight.shape[1])
    return x.T @ residual / len(x) + (weight - weight.mean(1, keepdim=True)) / (c * len(x))


@pytest.mark.parametrize("c", [0.01, 1.0])
@pytest.mark.parametrize("fit", [fitted, minimised])
def test_fits_end_where_the_gradient_does(fit, c):
    x, y = data(spread=3.0)
    assert gradient(fit(x, y, c), x, y, c).abs().max() < 2e-4  # float32 features


@pytest.mark.parametrize("spread", [1.0, 3.0])
def test_both_ways_answer_alike(spread):
    (x, y), (test, _) = data(0, spread=spread), data(1, spread=spread)
    one, other = (fit(x, y, 0.1)(test).log_softmax(1) for fit in (fitted, minimised))
    torch.testing.assert_close(one, other, atol=5e-3, rtol=0)


def test_strength_of_the_penalty_is_chosen_on_held_out_samples():
    (x, y), (test, targets) = data(spread=3.0), data(1, spread=3.0)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0)).numpy()
    out, kept = order[: len(y) // 5], order[len(y) // 5 :]
    accuracies = {}
    for c in (1e-5, 1e-2, 1.0):
        h = (x.numpy() - x.numpy()[kept].mean(0)) / x.numpy()[kept].std(0)
        accuracies[c] = LogisticRegression(C=c, max_iter=2000).fit(h[kept], y[kept]).score(h[out], y[out])
    best = max(accuracies, key=accuracies.get)
    assert best > 1e-5
    found = logistic_logits((x, y), test, K, (1e-5, 1e-2, 1.0))
    torch.testing.assert_close(found, logistic_logits((x, y), test, K, (best,)))
    assert not torch.allclose(found, logistic_logits((x, y), test, K, (1e-5,)))
    expected = (logistic_logits((x, y), test, K, (1.0,)).argmax(1) == targets).double().mean()
    assert logistic_accuracy(x, y, (test, targets)) == pytest.approx(float(expected))


@pytest.mark.parametrize("fit", [fitted, minimised])
def test_a_feature_that_does_not_vary_changes_nothing(fit):
    (x, y), (test, _) = data(0), data(1)
    more = [torch.cat([part, torch.full((len(part), 1), 2.5)], 1) for part in (x, test)]
    torch.testing.assert_close(fit(more[0], y, 0.1)(more[1]), fit(x, y, 0.1)(test), atol=2e-3, rtol=0)


def test_classes_without_samples_are_never_the_answer():
    (x, y), (test, _) = data(0), data(1)
    some = y < K - 1
    logits = logistic_logits((x[some], y[some]), test, K, (0.1,))
    assert logits.shape == (len(test), K)
    assert np.isneginf(logits[:, -1].numpy()).all()
    inner = logistic_logits((x[y != 0], y[y != 0]), test, K, (0.1,))
    assert np.isneginf(inner[:, 0].numpy()).all()
