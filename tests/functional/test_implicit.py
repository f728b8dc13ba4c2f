"""Proposition 2: the weights that it implies, and where they are a fixed point."""

from __future__ import annotations

from functools import cache
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch

from nc_callbacks.functional import implicit_weights
from nc_callbacks.statistics import ClassMoments, ClassStatistics, Covariance, SoftmaxExpectations, SoftmaxStatistics
from tests import reference_more as reference
from tests.reference import Array, gaussian_classes
from tests.reference import moments as reference_moments


def gathered(
    features: Array, targets: Array, k: int, covariance: Covariance = "per_class", batch_size: int = 16
) -> ClassMoments:
    statistics = ClassStatistics(k, covariance=covariance)
    for x, y in zip(torch.tensor(features).split(batch_size), torch.tensor(targets).split(batch_size), strict=True):
        statistics.update(x, y)
    return statistics.compute()


@cache
def small_problem() -> tuple[Array, Array, Array, Array]:
    """Features, targets, a weight, and generalised labels' α."""
    features, targets = gaussian_classes([60, 40, 25, 15], 6, offset=0.5)
    rng = np.random.default_rng(1)
    return features, targets, rng.normal(size=(4, 6)) / 3, rng.uniform(0.5, 2, size=4)


VARIANTS: Any = pytest.mark.parametrize("variant", ["full", "published"])


class TestImplicitWeights:
    @VARIANTS
    @pytest.mark.parametrize("with_alpha", [False, True])
    def test_equals_its_definition(self, variant: Any, with_alpha: bool) -> None:
        features, targets, weight, alpha = small_problem()
        value = implicit_weights(
            torch.tensor(weight),
            gathered(features, targets, 4),
            (torch.tensor(features), torch.tensor(targets)),
            variant,
            torch.tensor(alpha) if with_alpha else None,
        )
        published = variant == "published"
        expected = reference.implicit_weights(weight, features, targets, alpha if with_alpha else None, published)
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-9)

    @VARIANTS
    def test_expectations_equal_features(self, variant: Any) -> None:
        features, targets, weight, alpha = small_problem()
        x, y, w, moments = *map(torch.tensor, (features, targets, weight)), gathered(features, targets, 4)
        statistics = SoftmaxStatistics(4)
        for f, labels in zip((x @ w.T).split(9), y.split(9), strict=True):
            statistics.update(f, labels)
        torch.testing.assert_close(
            implicit_weights(w, moments, statistics.compute(), variant, torch.tensor(alpha)),
            implicit_weights(w, moments, (x, y), variant, torch.tensor(alpha)),
            rtol=1e-10,
            atol=1e-12,
        )

    def test_alpha(self) -> None:
        features, targets, weight, alpha = small_problem()
        x, y, w, moments = *map(torch.tensor, (features, targets, weight)), gathered(features, targets, 4)
        plain = implicit_weights(w, moments, (x, y))
        ones = torch.ones(4, dtype=torch.float64)
        torch.testing.assert_close(implicit_weights(w, moments, (x, y), alpha=5 * ones), plain)
        assert (implicit_weights(w, moments, (x, y), alpha=torch.tensor(alpha)) - plain).norm() > 0.01 * plain.norm()

    def test_vector_added_to_all_rows(self) -> None:
        # The softmax does not see it; the full form carries it through, for Σ_{q≠ℓ} p_ℓ p_q = p_ℓ (1 − p_ℓ).
        features, targets, weight, _ = small_problem()
        x, y, w, moments = *map(torch.tensor, (features, targets, weight)), gathered(features, targets, 4)
        v = torch.arange(6, dtype=torch.float64)
        moved = {variant: implicit_weights(w + v, moments, (x, y), variant) for variant in ("full", "published")}
        torch.testing.assert_close(moved["full"], implicit_weights(w, moments, (x, y)) + v)
        torch.testing.assert_close(moved["published"], implicit_weights(w, moments, (x, y), "published"))

    def test_start_from_zero(self) -> None:
        # p = 1/k: w_ℓ = Σ_W⁻¹ Σ_j π_j (δ_{ℓj} − 1/k) m_j / ((1/k)(1 − 1/k)).
        features, targets, _, _ = small_problem()
        moments = gathered(features, targets, 4)
        implied = implicit_weights(torch.zeros(4, 6), moments, (torch.tensor(features), torch.tensor(targets)))
        labels = np.eye(4)[targets] - 1 / 4
        expected = np.linalg.solve(reference_moments(features, targets, 4).within, features.T @ labels / len(targets))
        np.testing.assert_allclose(implied.numpy(), expected.T * 16 / 3, rtol=1e-6, atol=1e-6)

    @VARIANTS
    def test_dead_feature_gets_no_weight(self, variant: Any) -> None:
        features, targets, weight, _ = small_problem()
        padded, wide = np.insert(features, 2, 0, axis=1), np.insert(weight, 2, 0, axis=1)
        implied = implicit_weights(
            torch.tensor(wide), gathered(padded, targets, 4), (torch.tensor(padded), torch.tensor(targets)), variant
        ).numpy()
        expected = reference.implicit_weights(weight, features, targets, published=variant == "published")
        np.testing.assert_allclose(implied, np.insert(expected, 2, 0, axis=1), rtol=1e-9, atol=1e-12)

    def test_nan_gives_nan(self) -> None:
        features, targets, weight, _ = small_problem()
        broken = features.copy()
        broken[5, 2] = np.nan
        x, y = torch.tensor(features), torch.tensor(targets)
        assert implicit_weights(torch.tensor(weight), gathered(broken, targets, 4), (x, y)).isnan().all()

    def test_arguments(self) -> None:
        features, targets, weight, _ = small_problem()
        x, y, w = map(torch.tensor, (features, targets, weight))
        moments = gathered(features, targets, 4)
        with pytest.raises(ValueError, match=r"variant must be .* got 'half'"):
            implicit_weights(w, moments, (x, y), "half")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="Proposition 2 needs the covariance of each class"):
            implicit_weights(w, gathered(features, targets, 4, "pooled"), (x, y))
        with pytest.raises(ValueError, match="Every class must have samples"):
            implicit_weights(torch.ones(5, 6), gathered(features, targets, 5), (x, y))
        for shape in ((3, 6), (4, 5), (24,)):
            with pytest.raises(ValueError, match=r"weight must have shape \(4, 6\)"):
                implicit_weights(torch.ones(shape), moments, (x, y))
        with pytest.raises(ValueError, match="logits must be"):
            implicit_weights(w, moments, (x, y[1:]))

    @pytest.mark.parametrize("what", ["alpha", "features", "expectations"])
    def test_shapes(self, what: str) -> None:
        features, targets, weight, _ = small_problem()
        x, y, w = map(torch.tensor, (features, targets, weight))
        given: Any = (x[:, 1:], y) if what == "features" else (x, y)
        if what == "expectations":
            given = SoftmaxExpectations(torch.ones(3, 3) / 3, torch.ones(3, 3, 3) / 9)
        with pytest.raises(ValueError, match=what):
            implicit_weights(w, gathered(features, targets, 4), given, alpha=torch.ones(5) if what == "alpha" else None)


class TestGaussianMixture:
    """Proposition 2 where it holds: Gaussian classes that overlap, and W at the minimum of the softmax loss."""

    K, P, N = 4, 12, 400_000

    @pytest.mark.parametrize(
        ("distance", "seed"),
        [(3.0, 2), pytest.param(2.0, 0, marks=pytest.mark.slow), pytest.param(2.0, 1, marks=pytest.mark.slow)],
    )
    def test_fixed_point(self, distance: float, seed: int) -> None:
        features, targets, means, covariances = reference.gaussian_mixture(
            [0.4, 0.3, 0.2, 0.1], self.P, self.N, distance=distance, seed=seed
        )
        # Anisotropic, and different from class to class.
        spectra = np.linalg.eigvalsh(covariances)
        assert (spectra[:, -1] / spectra[:, 0]).min() > 4
        assert min(np.linalg.norm(a - b) / np.linalg.norm(a) for a, b in permutations(covariances, 2)) > 0.4

        fitted, gradient = reference.softmax_regression(features, targets, self.K, tolerance=2e-8)
        assert gradient < 2e-8
        # From W = 0 the rows add up to 0 (a vector added to all of them changes no softmax). The classes overlap.
        assert np.abs(fitted.sum(0)).max() < 1e-12 * np.abs(fitted).max()
        assert 0.7 < np.mean((features @ fitted.T).argmax(1) == targets) < 0.95

        x, y, w = map(torch.tensor, (features, targets, fitted))
        statistics, outputs = ClassStatistics(self.K, covariance="per_class"), SoftmaxStatistics(self.K)
        for rows, labels in zip(x.split(8192), y.split(8192), strict=True):
            statistics.update(rows, labels)
            outputs.update(rows @ w.T, labels)
        moments, expectations = statistics.compute(), outputs.compute()
        # The samples are what was asked for: within 6 standard errors.
        assert (moments.means - torch.tensor(means)).abs().max() < 6 * 1.7 / (0.09 * self.N) ** 0.5

        distances, cosines = {}, {}
        for variant in ("full", "published"):
            implied = implicit_weights(w, moments, expectations, variant)
            distances[variant] = ((implied - w).norm() / w.norm()).item()
            cosines[variant] = torch.cosine_similarity(implied.flatten(), w.flatten(), dim=0).item()
        # Stein's lemma holds for the classes, and up to n^(−1/2) for their samples: 0.6 to 1.1 % here.
        assert distances["full"] < 0.03
        assert cosines["full"] > 0.999
        # What eq. 8 drops: 31 to 44 % here, cosines 0.96 to 0.99.
        assert distances["published"] > 0.2
        assert 0.85 < cosines["published"] < 0.998

    def test_not_a_fixed_point_away_from_the_minimum(self) -> None:
        features, targets, _, _ = reference.gaussian_mixture([0.4, 0.3, 0.2, 0.1], self.P, 20_000, distance=2)
        fitted, _ = reference.softmax_regression(features, targets, self.K, tolerance=2e-8)
        x, y, moments = (
            torch.tensor(features),
            torch.tensor(targets),
            gathered(features, targets, self.K, "per_class", 4096),
        )
        for factor, least, most in [(1.0, 0, 0.1), (0.5, 0.2, 9), (2.0, 0.2, 9)]:
            w = torch.tensor(factor * fitted)
            distance = ((implicit_weights(w, moments, (x, y)) - w).norm() / w.norm()).item()
            assert least <= distance <= most, factor
