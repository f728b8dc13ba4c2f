"""The definitions in NumPy, float64 and the whole set at once, written to be obvious rather than fast.

Also the data they are tried on, and a log of the torch operations that a call dispatches.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode

Array = NDArray[Any]


@dataclass
class Moments:
    """Moments of each class; NaN for a class without samples."""

    counts: Array
    means: Array
    traces: Array
    coordinate_sums: Array
    covariances: Array
    within: Array


def moments(features: Array, targets: Array, num_classes: int) -> Moments:
    x = np.asarray(features, dtype=np.float64)
    k, p = num_classes, x.shape[1]
    counts = np.array([(targets == c).sum() for c in range(k)])
    means, covariances = np.full((k, p), np.nan), np.full((k, p, p), np.nan)
    for c in range(k):
        if counts[c]:
            means[c] = x[targets == c].mean(0)
            deviations = x[targets == c] - means[c]
            covariances[c] = deviations.T @ deviations / counts[c]
    deviations = x - means[targets]
    return Moments(
        counts=counts,
        means=means,
        traces=np.array([np.trace(c) for c in covariances]),
        coordinate_sums=np.array([c.sum() for c in covariances]),
        covariances=covariances,
        within=deviations.T @ deviations / len(x),
    )


def centred(means: Array, global_mean: Array | None = None) -> Array:
    return means - (sum(means) / len(means) if global_mean is None else global_mean)


def cosine(a: Array, b: Array) -> float:
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


def etf_gram(k: int) -> Array:
    return (np.eye(k) - np.ones((k, k)) / k) / np.sqrt(k - 1)


def between(means: Array, global_mean: Array | None = None) -> Array:
    return sum(np.outer(m, m) for m in centred(means, global_mean)) / len(means)


def between_inverse(means: Array, global_mean: Array | None = None) -> Array:
    # The cut-off lies between the rounding (1e-16) and the smallest eigenvalue of the data here (1e-6 of the largest).
    return np.linalg.pinv(between(means, global_mean), rcond=1e-10, hermitian=True)


def nc1(within: Array, means: Array, global_mean: Array | None = None) -> float:
    return np.trace(within @ between_inverse(means, global_mean)) / len(means)


def nc1_quotient(within: Array, means: Array, global_mean: Array | None = None) -> float:
    return np.trace(within) / np.trace(between(means, global_mean))


def nc1_cdnv(traces: Array, means: Array) -> float:
    pairs = combinations(range(len(means)), 2)
    return np.mean([(traces[a] + traces[b]) / (2 * np.sum((means[a] - means[b]) ** 2)) for a, b in pairs])


def nc2_equinorm(vectors: Array) -> float:
    norms = [np.linalg.norm(v) for v in vectors]
    return np.std(norms, ddof=1) / np.mean(norms)


def nc2_equiangularity(vectors: Array, signed: bool = False) -> float:
    deviations = [cosine(a, b) + 1 / (len(vectors) - 1) for a, b in permutations(vectors, 2)]
    return np.mean(deviations if signed else np.abs(deviations))


def nc2_etf(vectors: Array) -> float:
    gram = vectors @ vectors.T
    return np.linalg.norm(gram / np.linalg.norm(gram) - etf_gram(len(vectors)))


def nc3(weight: Array, means: Array, global_mean: Array | None = None) -> float:
    m = centred(means, global_mean)
    return np.linalg.norm(weight / np.linalg.norm(weight) - m / np.linalg.norm(m)) ** 2


def nc3_etf(weight: Array, means: Array, global_mean: Array | None = None) -> float:
    product = weight @ centred(means, global_mean).T
    return np.linalg.norm(product / np.linalg.norm(product) - etf_gram(len(means)))


def wm_cosine(weight: Array, means: Array, global_mean: Array | None = None) -> Array:
    return np.array([cosine(w, m) for w, m in zip(weight, centred(means, global_mean), strict=True)])


def nc3_uniform_duality(weight: Array, means: Array, global_mean: Array | None = None) -> float:
    return np.var(wm_cosine(weight, means, global_mean))


def nearest_mean(features: Array, means: Array) -> Array:
    return np.array([np.argmin([np.linalg.norm(h - m) for m in means]) for h in features])


def nc4(features: Array, weight: Array, means: Array, bias: Array | None = None) -> float:
    offset = np.zeros(len(weight)) if bias is None else bias
    predicted = np.array([np.argmax(weight @ h + offset) for h in features])
    return np.mean(predicted != nearest_mean(features, means))


def quasi_interpolation(outputs: Array, targets: Array, softmax: bool = False) -> dict[str, float]:
    epsilon, off = [], []
    for f, y in zip(np.asarray(outputs, dtype=np.float64), targets, strict=True):
        if softmax:
            f = np.exp(f - f.max()) / np.exp(f - f.max()).sum()
        epsilon.append(1 - f[y])
        off.append(np.delete(f, y))
    mean, off_mean, others = np.mean(epsilon), np.mean(off), len(off[0])
    return {
        "sqi_epsilon": mean,
        "sqi_epsilon_off": off_mean,
        "sqi_ratio": mean / (others * off_mean),
        "sqi_gap": mean - others * off_mean,
        "sqi_epsilon_rel_std": np.std(epsilon) / mean,
        "sqi_epsilon_off_rel_std": np.std(off) / off_mean,
        "sqi_epsilon_std": np.std(epsilon),
        "sqi_epsilon_off_std": np.std(off),
        "sqi_epsilon_off_sample_rel_std": np.sqrt(np.mean([np.var(e) for e in off])) / off_mean,
    }


def gaussian_classes(
    counts: list[int], p: int, *, spread: float = 1.0, offset: float = 0.0, seed: int = 0
) -> tuple[Array, Array]:
    """Shuffled samples around random class means (entries ~ N(0, 1)), of one random covariance a class."""
    rng = np.random.default_rng(seed)
    targets = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    means = rng.normal(size=(len(counts), p))
    mixing = rng.normal(size=(len(counts), p, p)) / np.sqrt(p)
    noise = rng.normal(size=(len(targets), p))
    samples = [offset + means[y] + spread * mixing[y] @ z for y, z in zip(targets, noise, strict=True)]
    return np.array(samples), targets


def dataset(name: str) -> tuple[Array, Array, int]:
    """Features (float64), targets and the number of classes."""
    if name == "unbalanced":
        features, targets = gaussian_classes([60, 25, 8, 2, 1], 6)
    elif name == "few_samples":
        features, targets = gaussian_classes([2, 1, 1], 4)
    elif name == "p > n":
        features, targets = gaussian_classes([5, 3, 2], 30)
    elif name == "near_collapsed":
        features, targets = gaussian_classes([40, 30, 10, 5], 8, spread=1e-5)
    elif name == "relu":
        features, targets = gaussian_classes([40, 30, 10, 5], 8)
        features = features.clip(min=0)
    elif name == "offset":
        features, targets = gaussian_classes([40, 30, 10, 5], 8, offset=1000)
    elif name == "one_feature":
        features, targets = gaussian_classes([20, 5, 1], 1)
    else:
        raise KeyError(name)
    return features, targets, targets.max() + 1


DATASETS = ["unbalanced", "few_samples", "p > n", "near_collapsed", "relu", "offset", "one_feature"]


def rotation(p: int, seed: int = 0) -> Array:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(p, p)))[0]


def simplex_etf(k: int, p: int, seed: int = 0) -> Array:
    """k vectors of norm 1 in p ≥ k − 1 dimensions, with pairwise cosines −1/(k−1) and sum 0, rotated at random."""
    # An orthonormal basis of the complement of 1 ∈ R^k: its rows are the simplex.
    basis = np.linalg.svd(np.eye(k) - 1 / k)[0][:, : k - 1]
    return np.sqrt(k / (k - 1)) * basis @ rotation(p, seed)[: k - 1]


class DispatchLog(TorchDispatchMode):
    """Names of the torch operations dispatched within the context, and the most elements that one of them returned."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.names.append(str(func))
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.numel())
        return result
