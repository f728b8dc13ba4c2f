from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor

from nc_callbacks.functional import a2_residual, near_optimality, softmax_expectations
from nc_callbacks.statistics import ClassMoments, ClassStatistics, Covariance, SoftmaxStatistics
from tests import reference_more as reference
from tests.reference import Array, dataset, gaussian_classes, rotation
from tests.reference import moments as reference_moments

DATASETS = ["unbalanced", "p > n", "near_collapsed", "relu", "offset", "one_feature"]
REL = {"near_collapsed": 1e-6}
"""1e-11 elsewhere: deviations of 1e-5 from means of order 1 keep 11 digits, here and in NumPy."""


def gathered(
    features: Array, targets: Array, k: int, covariance: Covariance = "per_class", batch_size: int = 16
) -> ClassMoments:
    statistics = ClassStatistics(k, covariance=covariance)
    for x, y in zip(torch.tensor(features).split(batch_size), torch.tensor(targets).split(batch_size), strict=True):
        statistics.update(x, y)
    return statistics.compute()


def with_covariances(covariances: Array, means: Array | None = None) -> ClassMoments:
    c = torch.tensor(covariances)
    return ClassMoments(
        counts=torch.ones(len(c), dtype=torch.long),
        means=torch.tensor(np.eye(*c.shape[:2]) if means is None else means),
        traces=c.diagonal(dim1=1, dim2=2).sum(1),
        coordinate_sums=c.sum((1, 2)),
        covariances=c,
    )


class TestNearOptimality:
    @pytest.mark.parametrize("covariance", ["none", "pooled", "per_class"])
    @pytest.mark.parametrize("name", DATASETS)
    def test_equals_its_definition(self, name: str, covariance: Covariance) -> None:
        features, targets, k = dataset(name)
        expected = reference_moments(features, targets, k)
        products = np.array([[a @ b for b in expected.means] for a in expected.means])
        variances = [np.mean(np.diag(c)) for c in expected.covariances]
        covariances = [reference.mean_off_diagonal(c) for c in expected.covariances]
        value = near_optimality(gathered(features, targets, k, covariance))

        rel = REL.get(name, 1e-11)
        scale, largest = float(np.max(np.diag(products))), float(max(variances))
        assert value.squared_norms.tolist() == pytest.approx(np.diag(products).tolist(), rel=1e-12)
        per_class = [np.mean([products[c, d] for d in range(k) if d != c]) for c in range(k)]
        assert value.mean_products.tolist() == pytest.approx(per_class, rel=1e-11, abs=1e-13 * scale)
        assert value.variances.tolist() == pytest.approx(variances, rel=rel, abs=1e-25)
        # Off-diagonal entries cancel in the sum: relative to the largest variance.
        assert value.covariances.tolist() == pytest.approx(covariances, rel=rel, abs=rel * largest)
        assert value.mu1.item() == pytest.approx(np.mean([m @ m for m in expected.means]), rel=1e-12)
        pairs = [a @ b for a, b in permutations(expected.means, 2)]
        assert value.mu2.item() == pytest.approx(np.mean(pairs), rel=1e-11, abs=1e-13 * scale)
        assert value.sigma1.item() == pytest.approx(np.mean(variances), rel=rel)
        assert value.sigma2.item() == pytest.approx(np.mean(covariances), rel=rel, abs=rel * largest)
        assert value.mu_ratio.item() == pytest.approx(np.mean(pairs) / np.mean(np.diag(products)), rel=1e-11)
        assert value.sigma_ratio.item() == (value.sigma2 / value.sigma1).item()

    def test_orthogonal_means_of_one_norm(self) -> None:
        value = near_optimality(with_covariances(np.array([np.eye(7)] * 4), 3 * rotation(7)[:4]))
        assert value.mu1.item() == pytest.approx(9)
        assert value.mu2.item() == pytest.approx(0, abs=1e-14)
        assert value.mu_ratio.item() == pytest.approx(0, abs=1e-15)

    def test_means_are_not_centred(self) -> None:
        value = near_optimality(with_covariances(np.zeros((3, 2, 2)), np.array([[1.0, 1.0]] * 3)))
        assert (value.mu1.item(), value.mu2.item()) == (2, 2)

    def test_one_feature_has_no_other_coordinate(self) -> None:
        features, targets, k = dataset("one_feature")
        value = near_optimality(gathered(features, targets, k, "none"))
        assert value.covariances.tolist() == [0.0] * k
        assert value.sigma_ratio.item() == 0

    def test_absent_classes_are_left_out(self) -> None:
        features, targets = gaussian_classes([9, 6, 3], 4)
        value = near_optimality(gathered(features, 2 * targets, 6))
        present = near_optimality(gathered(features, targets, 3))
        assert value.squared_norms.shape == (3,)
        for name in vars(present):
            assert torch.equal(getattr(value, name), getattr(present, name)), name

    def test_fewer_than_two_classes_raise(self) -> None:
        features, targets = gaussian_classes([9], 4)
        with pytest.raises(ValueError, match="at least 2 classes"):
            near_optimality(gathered(features, targets, 3))


class TestA2Residual:
    @pytest.mark.parametrize("name", ["unbalanced", "p > n", "relu", "offset"])
    def test_equals_its_definition(self, name: str) -> None:
        features, targets, k = dataset(name)
        features, targets = (a[targets < 3] for a in (features, targets))  # classes with more than one sample
        expected = reference.a2_residual(reference_moments(features, targets, 3).covariances)
        assert 0.1 < expected < 1
        assert a2_residual(gathered(features, targets, k)).item() == pytest.approx(expected, rel=1e-9)

    @pytest.mark.parametrize(("a", "b"), [(1.0, 0.0), (2.0, 0.5), (3.0, -0.5), (1.0, 1.0)])
    def test_isotropic_covariances(self, a: float, b: float) -> None:
        eye = np.eye(5)
        moments = with_covariances(np.array([a * eye + b * (1 - eye), 7 * a * eye + 7 * b * (1 - eye)]))
        assert a2_residual(moments).item() == pytest.approx(0, abs=1e-15)
        assert near_optimality(moments).variances.tolist() == pytest.approx([a, 7 * a])
        assert near_optimality(moments).covariances.tolist() == pytest.approx([b, 7 * b], abs=1e-15)

    @pytest.mark.parametrize("p", [2, 5])
    def test_one_entry_off(self, p: int) -> None:
        # An entry and its mirror raised by t = ½: their mean 2t/(p(p−1)) is fitted, 2t² (1 − 2/(p(p−1))) is left.
        covariances = np.array([np.eye(p), np.eye(p)])
        covariances[0, 0, 1] = covariances[0, 1, 0] = 0.5
        expected = np.sqrt(2 * 0.25 * (1 - 2 / (p * (p - 1)))) / np.sqrt(p + 2 * 0.25) / 2
        assert a2_residual(with_covariances(covariances)).item() == pytest.approx(expected)

    def test_one_feature_is_isotropic(self) -> None:
        features, targets, k = dataset("one_feature")
        assert a2_residual(gathered(features, targets, k)).item() == pytest.approx(0, abs=1e-14)

    def test_a_class_without_spread_counts_zero(self) -> None:
        covariances = np.array([np.diag([1.0, 0.0]), np.zeros((2, 2))])
        # diag(1, 0) − I/2 has norm √½.
        assert a2_residual(with_covariances(covariances)).item() == pytest.approx(0.5**0.5 / 2)

    def test_absent_classes_are_left_out(self) -> None:
        features, targets = gaussian_classes([9, 6, 5], 4)
        value = a2_residual(gathered(features, 2 * targets, 6))
        assert value == a2_residual(gathered(features, targets, 3))

    @pytest.mark.parametrize("covariance", ["none", "pooled"])
    def test_needs_covariances(self, covariance: Covariance) -> None:
        features, targets = gaussian_classes([9, 6], 4)
        with pytest.raises(ValueError, match="a2_residual needs the covariance of each class"):
            a2_residual(gathered(features, targets, 2, covariance))


class TestSoftmaxExpectations:
    @pytest.mark.parametrize(("n", "k"), [(40, 2), (100, 5)])
    def test_equals_its_definition(self, n: int, k: int) -> None:
        rng = np.random.default_rng(k)
        logits, targets = 3 * rng.normal(size=(n, k)), np.arange(n) % k
        value = softmax_expectations(torch.tensor(logits), torch.tensor(targets))
        probabilities, products = reference.softmax_expectations(logits, targets)
        np.testing.assert_allclose(value.probabilities.numpy(), probabilities, rtol=1e-12)
        np.testing.assert_allclose(value.products.numpy(), products, rtol=1e-12)

    def test_identities(self) -> None:
        logits = torch.tensor(np.random.default_rng(0).normal(size=(30, 4)))
        value = softmax_expectations(logits, torch.arange(30) % 4)
        torch.testing.assert_close(value.probabilities.sum(1), torch.ones(4, dtype=torch.float64))
        torch.testing.assert_close(value.products.sum(2), value.probabilities)
        assert torch.equal(value.products, value.products.mT)

    def test_large_logits(self) -> None:
        value = softmax_expectations(torch.tensor([[1e4, 0.0], [0.0, 1e4]]), torch.tensor([0, 1]))
        assert value.probabilities.tolist() == [[1, 0], [0, 1]]
        assert value.products.tolist() == [[[1, 0], [0, 0]], [[0, 0], [0, 1]]]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_widened(self, dtype: torch.dtype) -> None:
        logits, targets = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).to(dtype), torch.arange(20) % 3
        value, wide = (softmax_expectations(f, targets) for f in (logits, logits.float()))
        assert value.products.dtype == torch.float32
        assert torch.equal(value.products, wide.products)

    def test_gradients(self) -> None:
        logits = torch.tensor(np.random.default_rng(0).normal(size=(6, 3)), requires_grad=True)
        assert torch.autograd.gradcheck(lambda f: softmax_expectations(f, torch.arange(6) % 3).products, logits)

    @pytest.mark.parametrize(
        ("logits", "targets"),
        [(torch.ones(3), torch.zeros(3).long()), (torch.ones(3, 2), torch.zeros(4).long())],
    )
    def test_bad_shapes_raise(self, logits: Tensor, targets: Tensor) -> None:
        with pytest.raises(ValueError, match=r"logits must be \(n, k\) and targets \(n,\)"):
            softmax_expectations(logits, targets)


class TestSoftmaxStatistics:
    @pytest.mark.parametrize("sizes", [[50], [1] * 50, [7] * 7 + [1], [49, 1]])
    def test_streamed_equals_the_whole_set(self, sizes: list[int]) -> None:
        rng = np.random.default_rng(0)
        logits, targets = torch.tensor(2 * rng.normal(size=(50, 4))), torch.tensor(rng.integers(4, size=50))
        statistics = SoftmaxStatistics(4)
        for f, y in zip(logits.split(sizes), targets.split(sizes), strict=True):
            statistics.update(f, y)
        value, expected = statistics.compute(), softmax_expectations(logits, targets)
        torch.testing.assert_close(value.probabilities, expected.probabilities, rtol=1e-13, atol=0)
        torch.testing.assert_close(value.products, expected.products, rtol=1e-13, atol=0)

    def test_a_class_without_samples_is_nan(self) -> None:
        statistics = SoftmaxStatistics(3)
        statistics.update(torch.zeros(4, 3), torch.tensor([0, 2, 2, 0]))
        value = statistics.compute()
        assert value.probabilities[1].isnan().all()
        assert value.products[1].isnan().all()
        assert value.probabilities[[0, 2]].flatten().tolist() == pytest.approx([1 / 3] * 6)

    def test_float32_logits_are_summed_in_float64(self) -> None:
        statistics = SoftmaxStatistics(2)
        for _ in range(3):
            statistics.update(torch.tensor([[0.1, 0.2]]), torch.tensor([0]))
        expected = reference.softmax(np.array([0.1, 0.2], dtype=np.float32).astype(float))
        np.testing.assert_allclose(statistics.compute().probabilities[0].numpy(), expected, rtol=1e-14)

    def test_int32_targets(self) -> None:
        SoftmaxStatistics(2).update(torch.zeros(2, 2), torch.tensor([0, 1], dtype=torch.int32))

    def test_number_of_classes(self) -> None:
        with pytest.raises(ValueError, match="num_classes must be at least 2"):
            SoftmaxStatistics(1)
