"""How many digits of nc1 survive in float32: shifted sums against E[xxᵀ] − mmᵀ.

Features are float32, p = 512, k = 10, 4,000 samples in batches of 128, class means of norm 20; the truth is computed
in float64 from the same float32 features, whole set at once. Run: python benchmarks/accuracy.py
"""

import numpy as np
import torch
from speed.steps import announced

from nc_callbacks import ClassStatistics
from nc_callbacks.functional import nc1

K, P, N, BATCH = 10, 512, 4_000, 128


def features(target: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Isotropic classes around random means of norm 20, spread so that nc1 is about `target`."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(K, P, generator=generator, dtype=torch.float64)
    means *= 20 / means.norm(dim=1, keepdim=True)
    targets = torch.randint(K, (N,), generator=generator)
    noise = torch.randn(N, P, generator=generator, dtype=torch.float64)
    unit = truth(means[targets] + noise, targets)
    return (means[targets] + noise * (target / unit) ** 0.5).float(), targets


def truth(x: torch.Tensor, y: torch.Tensor) -> float:
    """nc1 from its definition in float64, in two passes."""
    h, y = x.double().numpy(), y.numpy()
    means = np.stack([h[y == c].mean(0) for c in range(K)])
    deviations = h - means[y]
    centred = means - means.mean(0)
    between = centred.T @ centred / K
    return float(np.trace(deviations.T @ deviations / len(h) @ np.linalg.pinv(between, rcond=1e-10)) / K)


def streamed(x: torch.Tensor, y: torch.Tensor) -> float:
    statistics = ClassStatistics(K)
    for features, targets in zip(x.split(BATCH), y.split(BATCH), strict=True):
        statistics.update(features, targets)
    moments = statistics.compute()
    assert moments.within is not None
    return nc1(moments.within, moments.means).item()


def textbook(x: torch.Tensor, y: torch.Tensor) -> float:
    """The same with sums of x and xxᵀ as they come, in float32."""
    counts = torch.bincount(y, minlength=K).float()
    sums, products = torch.zeros(K, P), torch.zeros(P, P)
    for features, targets in zip(x.split(BATCH), y.split(BATCH), strict=True):
        sums.index_add_(0, targets, features)
        products += features.T @ features
    means = sums / counts[:, None]
    within = products / len(x) - (counts[:, None] / len(x) * means).T @ means
    return nc1(within, means).item()


def main() -> None:
    print(f"{'nc1':>10} {'shifted sums':>14} {'E[xxT] - mmT':>14}   relative error")
    for exponent in announced(range(-1, -14, -2), "about ten seconds"):
        x, y = features(10.0**exponent)
        exact = truth(x, y)
        errors = [abs(value / exact - 1) for value in (streamed(x, y), textbook(x, y))]
        print(f"{exact:10.1e} {errors[0]:14.1e} {errors[1]:14.1e}")


if __name__ == "__main__":
    main()
