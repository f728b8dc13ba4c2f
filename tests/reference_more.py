"""More of the definitions in NumPy, float64: outputs, spectrum, squared error, near-optimality and Proposition 2."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def softmax(logits: Array) -> Array:
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def one_hot(targets: Array, k: int) -> Array:
    return np.eye(k)[targets]


def quasi_interpolation_errors(outputs: Array, targets: Array) -> tuple[Array, Array]:
    epsilon = [1 - f[y] for f, y in zip(outputs, targets, strict=True)]
    off = [[f[c] for c in range(len(f)) if c != y] for f, y in zip(outputs, targets, strict=True)]
    return np.array(epsilon), np.array(off)


def eigenvalues(activations: Array) -> Array:
    """Of XᵀX/n, from the singular values √(nλ) of X; zeros up to p where p > n."""
    n, p = activations.shape
    values = np.zeros(p)
    singular = np.linalg.svd(activations, compute_uv=False)
    values[: len(singular)] = singular**2 / n
    return values


def entropy_rank(shares: Array) -> float:
    return np.exp(sum(-q * np.log(q) for q in shares if q > 0))


def squared_error(
    weight: Array, bias: Array | None, features: Array, targets: Array, weight_decay: float = 0.0
) -> float:
    """½ mean_i ‖W h_i + b − e_{y_i}‖² + (λ/2)(‖W‖² + ‖b‖²), sample by sample."""
    b = np.zeros(len(weight)) if bias is None else bias
    errors = [np.sum((weight @ h + b - one_hot(y, len(weight))) ** 2) for h, y in zip(features, targets, strict=True)]
    return np.mean(errors) / 2 + weight_decay / 2 * (np.sum(weight**2) + np.sum(b**2))


def least_squares(
    features: Array, targets: Array, k: int, bias: bool, weight_decay: float = 0.0
) -> tuple[Array, Array | None]:
    """The minimiser of `squared_error` (of least norm), by lstsq on the samples and √(nλ) I below them."""
    x = np.hstack([features, np.ones((len(features), 1))]) if bias else features
    ridge = np.sqrt(len(x) * weight_decay) * np.eye(x.shape[1])
    rows, labels = np.vstack([x, ridge]), np.vstack([one_hot(targets, k), np.zeros((x.shape[1], k))])
    solution = np.linalg.lstsq(rows, labels, rcond=1e-12)[0].T
    return (solution[:, :-1], solution[:, -1]) if bias else (solution, None)


def nc2_uniformity(vectors: Array) -> tuple[float, float]:
    unit = [v / np.linalg.norm(v) for v in vectors]
    logs = [np.log(1 / np.linalg.norm(a - b)) for a, b in combinations(unit, 2)]
    return np.mean(logs), np.var(logs)


def nc5(means: Array, ood_mean: Array) -> float:
    return np.mean([abs(m @ ood_mean) / (np.linalg.norm(m) * np.linalg.norm(ood_mean)) for m in means])


def mean_off_diagonal(matrix: Array) -> float:
    p = len(matrix)
    return np.mean([matrix[a, b] for a in range(p) for b in range(p) if a != b]) if p > 1 else 0.0


def a2_residual(covariances: Array) -> float:
    residuals = []
    for c in covariances:
        eye = np.eye(len(c))
        fit = np.mean(np.diag(c)) * eye + mean_off_diagonal(c) * (1 - eye)
        residuals.append(np.linalg.norm(c - fit) / np.linalg.norm(c))
    return np.mean(residuals)


def softmax_expectations(logits: Array, targets: Array) -> tuple[Array, Array]:
    """E_j[p_ℓ], (k, k), and E_j[p_ℓ p_q], (k, k, k); NaN for a class j without samples."""
    k = logits.shape[1]
    probabilities, products = np.full((k, k), np.nan), np.full((k, k, k), np.nan)
    for j in np.unique(targets):
        rows = [softmax(f) for f in logits[targets == j]]
        probabilities[j] = np.mean(rows, axis=0)
        products[j] = np.mean([np.outer(p, p) for p in rows], axis=0)
    return probabilities, products


def implicit_weights(
    weight: Array, features: Array, targets: Array, alpha: Array | None = None, published: bool = False
) -> Array:
    """w_ℓ = −A⁻¹(Σ_j α_j π_j E_j[f_ℓ] m_j − Σ_j α_j π_j C_j Σ_{q≠ℓ} E_j[p_ℓ p_q] w_q), class by class."""
    k, p = weight.shape
    expectations, products = softmax_expectations(features @ weight.T, targets)
    implied = []
    for c in range(k):
        curvature, drive = np.zeros((p, p)), np.zeros(p)
        for j in range(k):
            x = features[targets == j]
            m = x.mean(0)
            covariance = (x - m).T @ (x - m) / len(x)
            factor = (1.0 if alpha is None else alpha[j]) * len(x) / len(features)
            curvature += factor * (expectations[j, c] - products[j, c, c]) * covariance
            drive += factor * (expectations[j, c] - (c == j)) * m
            for q in range(k):
                if q != c and not published:
                    drive -= factor * products[j, c, q] * covariance @ weight[q]
        implied.append(-np.linalg.solve(curvature, drive))
    return np.array(implied)


def gaussian_mixture(
    priors: list[float], p: int, n: int, *, distance: float, seed: int = 0
) -> tuple[Array, Array, Array, Array]:
    """Samples of anisotropic Gaussian classes, targets, true means and true covariances."""
    rng = np.random.default_rng(seed)
    k = len(priors)
    means = distance * rng.normal(size=(k, p)) / np.sqrt(p)
    mixing = np.array([np.linalg.qr(rng.normal(size=(p, p)))[0] * rng.uniform(0.3, 1.7, size=p) for _ in range(k)])
    targets = rng.choice(k, size=n, p=priors)
    features = rng.normal(size=(n, p))
    for c in range(k):
        features[targets == c] = means[c] + features[targets == c] @ mixing[c].T
    return features, targets, means, mixing @ mixing.transpose(0, 2, 1)


def softmax_regression(features: Array, targets: Array, k: int, tolerance: float) -> tuple[Array, float]:
    """W of the unregularised softmax loss without bias, by Newton's method from W = 0, and its |gradient|.

    The loss does not change with a vector added to all rows of W: the Hessian is singular along it, the pseudo-inverse
    takes no step along it, and the rows of W add up to 0.
    """
    n, p = features.shape
    weight = np.zeros((k, p))
    for _ in range(30):
        gradient, hessian = np.zeros((k, p)), np.zeros((k, p, k, p))
        for start in range(0, n, 20_000):
            x = features[start : start + 20_000]
            probability = softmax(x @ weight.T)
            gradient += (probability - one_hot(targets[start : start + 20_000], k)).T @ x / n
            for a in range(k):
                for b in range(a + 1):
                    factor = probability[:, a] * ((a == b) - probability[:, b])
                    hessian[a, :, b] += (factor[:, None] * x).T @ x / n
        for a, b in combinations(range(k), 2):
            hessian[a, :, b] = hessian[b, :, a].T
        size = float(np.linalg.norm(gradient))
        if size < tolerance:
            return weight, size
        inverse = np.linalg.pinv(hessian.reshape(k * p, k * p), rcond=1e-10, hermitian=True)
        weight = weight - (inverse @ gradient.ravel()).reshape(k, p)
    raise RuntimeError(f"Newton's method did not converge: |gradient| = {size}.")
