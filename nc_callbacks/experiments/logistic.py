"""Heads trained to the end: logistic regressions whose regularisation is chosen on held-out samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

STRENGTHS = (0.01, 0.1, 1.0)
"""Values of C, the inverse of the weight of the L2 penalty, that are tried."""

Model = Callable[[Float[Tensor, "m p"]], Float[Tensor, "m z"]]


def logistic_logits(
    train: tuple[Float[Tensor, "n p"], Int[Tensor, " n"]],
    features: Float[Tensor, "m p"],
    num_classes: int,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "m k"]:
    """Outputs of a logistic regression on standardised features, fitted until it converges, with the best of some C.

    C is chosen on a fifth of the training samples, drawn at random and kept out of the fits that it is chosen by; then
    all samples are fitted. Equal accuracies go to the stronger penalty.

    Args:
        train: Training features and class indices.
        features: Of other samples.
        num_classes: k; classes without training samples have the output −∞ or a very small one.
        strengths: Values of C, rising; a single one is taken as it is.
        seed: Of the draw.
        device: On the CPU scikit-learn fits; on another device `minimised` does.

    Returns:
        Outputs up to a constant of each sample, on the CPU.
    """
    fit = fitted if torch.device(device).type == "cpu" else minimised
    x, y = (part.to(device) for part in train)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    out, kept = order[: len(y) // 5].to(device), order[len(y) // 5 :].to(device)
    best = strengths[0]
    if len(strengths) > 1:
        right = [int((fit(x[kept], y[kept], c)(x[out]).argmax(1) == y[out]).sum()) for c in strengths]
        best = strengths[right.index(max(right))]
    logits = fit(x, y, best)(features.to(device)).cpu()
    missing = logits.new_full((len(logits), num_classes - logits.shape[1]), -torch.inf)
    return torch.cat([logits, missing], 1)


def logistic_accuracy(
    features: Float[Tensor, "n p"],
    targets: Int[Tensor, " n"],
    test: tuple[Tensor, Tensor],
    strengths: Sequence[float] = (1.0,),
    device: torch.device | str = "cpu",
) -> float:
    """Test accuracy of `logistic_logits`, by default with C = 1."""
    logits = logistic_logits((features, targets), test[0], int(targets.max()) + 1, strengths, device=device)
    return float((logits.argmax(1) == test[1]).double().mean())


def fitted(features: Float[Tensor, "n p"], targets: Int[Tensor, " n"], c: float) -> Model:
    """Scikit-learn's logistic regression on standardised features."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # The tolerance is one of the mean gradient: at 1e-3 a fit ends after ten steps, a point of accuracy from the end.
    model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=5000, tol=1e-6))
    model.fit(features.numpy(), targets.numpy())

    def logits(other: Tensor) -> Tensor:
        probabilities = torch.from_numpy(model.predict_log_proba(other.numpy())).float()
        found = probabilities.new_full((len(other), int(targets.max()) + 1), -torch.inf)
        found[:, model[-1].classes_] = probabilities
        return found

    return logits


def minimised(features: Float[Tensor, "n p"], targets: Int[Tensor, " n"], c: float) -> Model:
    """The linear classifier with the least Σ_i cross-entropy_i + ‖W‖²/(2C) on standardised features.

    By L-BFGS in float64, on the device of the features: a second on a GPU for 5,000 × 512 features.
    """
    x = features.double()
    mean, spread = x.mean(0), x.std(0, correction=0)
    spread = spread.where(spread > 0, 1)
    x = (x - mean) / spread
    weight = x.new_zeros(int(targets.max()) + 1, x.shape[1], requires_grad=True)
    bias = x.new_zeros(len(weight), requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=2000, tolerance_grad=1e-5, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(x, weight, bias), targets) + weight.square().sum() / (2 * c * len(x))
        value.backward()
        return value

    optimizer.step(loss)
    return lambda other: F.linear((other.double() - mean) / spread, weight.detach(), bias.detach()).float()
