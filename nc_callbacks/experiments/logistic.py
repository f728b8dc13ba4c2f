"""Heads trained to the end: logistic regressions whose regularisation is chosen on held-out samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

STRENGTHS = (0.01, 0.1, 1.0)
"""Values of C, the inverse of the weight of the L2 penalty, that are tried."""


def fitted_logistic(
    features: Float[Tensor, "n p"], targets: Int[Tensor, " n"], strengths: Sequence[float] = STRENGTHS, seed: int = 0
) -> Any:
    """Logistic regression on standardised features, fitted until it converges, with the C that is best on a fifth.

    The fifth is drawn at random and kept out of the fits that C is chosen by; then all samples are fitted. Equal
    accuracies go to the stronger penalty.

    Args:
        features: Training features.
        targets: Class indices.
        strengths: Values of C, rising; a single one is taken as it is.
        seed: Of the draw.

    Returns:
        A scikit-learn pipeline.
    """
    x, y = features.numpy(), targets.numpy()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed)).numpy()
    out, kept = order[: len(y) // 5], order[len(y) // 5 :]
    best = strengths[0]
    if len(strengths) > 1:
        accuracies = [_logistic(c).fit(x[kept], y[kept]).score(x[out], y[out]) for c in strengths]
        best = strengths[accuracies.index(max(accuracies))]
    return _logistic(best).fit(x, y)


def logistic_accuracy(
    features: Float[Tensor, "n p"],
    targets: Int[Tensor, " n"],
    test: tuple[Tensor, Tensor],
    strengths: Sequence[float] = (1.0,),
) -> float:
    """Test accuracy of `fitted_logistic`, by default with C = 1."""
    return float(fitted_logistic(features, targets, strengths).score(test[0].numpy(), test[1].numpy()))


def _logistic(c: float) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000, tol=1e-3))
