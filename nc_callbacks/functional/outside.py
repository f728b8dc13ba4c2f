"""Scores of single samples that tell data of the training distribution from other data; larger within it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nc_callbacks.functional._common import as_matrix, full_precision, is_finite
from nc_callbacks.functional.rounding import STEPS, Rounding
from nc_callbacks.functional.shrinkage import checked, chosen
from nc_callbacks.statistics import ClassMoments
from nc_callbacks.statistics.precision import wide_dtype


@full_precision
def energy_score(outputs: Float[Tensor, "n k"], temperature: float = 1.0) -> Float[Tensor, " n"]:
    """T log Σ_c exp(f_c/T), the negative free energy of the classifier's outputs (Liu et al. 2020).

    Args:
        outputs: f, before any softmax.
        temperature: T.

    Example:
        >>> energy_score(torch.tensor([[0.0, 0.0], [3.0, -20.0]]))
        tensor([0.6931, 3.0000])
    """
    return temperature * torch.logsumexp(outputs.to(_wide(outputs)) / temperature, 1)


@full_precision
def nearest_mean_score(features: Float[Tensor, "n p"], means: Float[Tensor, "k p"]) -> Float[Tensor, " n"]:
    """−min_c ‖h − m_c‖, the distance to the nearest class mean, in units of the features (0 on a class mean).

    Args:
        features: h, one row per sample.
        means: Uncentred class means of the training split.

    Raises:
        ValueError: The numbers of features differ, or there are fewer than two classes.

    Example:
        >>> nearest_mean_score(torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
        tensor([-4.4721, -0.0000])
    """
    means = as_matrix("means", means, _wide(means))
    _check_width(features, means.shape[1])
    return -_nearest(features.to(means.dtype), means)


@full_precision
def nci_score(
    features: Float[Tensor, "n p"],
    weight: Float[Tensor, "k p"],
    centre: Float[Tensor, " p"],
    predicted: Int[Tensor, " n"],
    alpha: float = 0.0,
) -> Float[Tensor, " n"]:
    """w_ĉᵀ(h − m)/‖h − m‖ + α ‖h‖₁, ĉ the class that the classifier chooses (NCI: Liu & Qin 2025).

    At collapse features of the training distribution lie along their weight row, and others do not. The 1-norm, with an
    α that is chosen on data, leaves out features that are near the origin.

    Args:
        features: h, one row per sample.
        weight: W.
        centre: m, the mean of all training samples.
        predicted: ĉ, class indices.
        alpha: Weight of the 1-norm.

    Raises:
        ValueError: The numbers of features differ.

    Example:
        >>> h = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
        >>> nci_score(h, torch.eye(2) * 2, torch.zeros(2), torch.tensor([0, 0]))
        tensor([2., 0.])
    """
    dtype = torch.promote_types(_wide(features), weight.dtype)
    _check_width(features, weight.shape[1])
    h = features.to(dtype)
    around = h - centre.to(dtype)
    along = (around * weight.to(dtype)[predicted]).sum(1) / around.norm(dim=1)
    return along + alpha * h.abs().sum(1)


@full_precision
def neco_score(
    features: Float[Tensor, "n p"], moments: ClassMoments, directions: int | None = None
) -> Float[Tensor, " n"]:
    """‖P(h − m)‖/‖h − m‖ in [0, 1], P onto the first principal directions of the training features (Ammar et al. 2024).

    At collapse features of the training distribution lie in the k − 1 directions of the class means, and those of other
    data are orthogonal to them (NC5). The directions are those of the covariance of all samples, around their mean m.
    The paper's code standardises each feature before, and multiplies by the largest output for some networks.

    Args:
        features: h, one row per sample.
        moments: Of the training split, with Σ_W.
        directions: How many; by default k − 1.

    Raises:
        ValueError: Σ_W was not gathered, fewer than two classes have samples, or the numbers of features differ.

    Example:
        >>> from nc_callbacks import ClassStatistics
        >>> statistics = ClassStatistics(num_classes=2)
        >>> statistics.update(torch.tensor([[-1.0, 0.1], [-1.0, -0.1], [1.0, 0.1], [1.0, -0.1]]), torch.arange(4) // 2)
        >>> neco_score(torch.tensor([[2.0, 0.0], [0.0, 2.0], [3.0, 4.0]]), statistics.compute())
        tensor([1.0000, 0.0000, 0.6000])
    """
    return Principal.of(moments, directions).score(features)


@full_precision
def mahalanobis_score(
    features: Float[Tensor, "n p"], moments: ClassMoments, shrinkage: float | None = None
) -> Float[Tensor, " n"]:
    """−min_c (h − m_c)ᵀΣ⁻¹(h − m_c) with Σ = (1−a) Σ_W + a (tr Σ_W/p) I (Lee et al. 2018, with a = 0).

    Args:
        features: h, one row per sample.
        moments: Of the training split, with Σ_W.
        shrinkage: a; by default as in `nc_callbacks.functional.whitened_weight`.

    Raises:
        ValueError: Σ_W was not gathered or is 0, fewer than two classes have samples, Σ is singular, or the numbers of
            features differ.

    Example:
        >>> from nc_callbacks import ClassStatistics
        >>> statistics = ClassStatistics(num_classes=2)
        >>> h = torch.tensor([[1.0, 2.0], [1.0, -2.0], [-1.0, 2.0], [-1.0, -2.0]])
        >>> statistics.update(torch.cat([h, h + 10]), torch.arange(8) // 4)
        >>> mahalanobis_score(torch.tensor([[0.0, 4.0], [2.0, 0.0]]), statistics.compute(), shrinkage=0.0)
        tensor([-4., -4.])
    """
    return Whitening.of(moments, shrinkage).score(features)


@dataclass(frozen=True)
class Principal:
    """The centre and the first principal directions of all samples."""

    centre: Float[Tensor, " p"]
    basis: Float[Tensor, "p d"]

    @classmethod
    def of(cls, moments: ClassMoments, directions: int | None = None) -> Principal:
        """See `neco_score`."""
        seen = checked(moments)
        assert seen.within is not None
        d = min(len(seen.means) - 1 if directions is None else directions, seen.means.shape[1])
        if d < 1:
            raise ValueError(f"directions must be at least 1, got {directions}.")
        wide = torch.promote_types(seen.means.dtype, wide_dtype(seen.means.device))
        centre = seen.sample_mean.to(wide)
        gaps = (seen.means.to(wide) - centre) * seen.priors.to(wide).sqrt()[:, None]
        covariance = seen.within.to(wide) + gaps.T @ gaps
        if not is_finite(covariance):
            return cls(centre, torch.full_like(covariance[:, :d], torch.nan))
        return cls(centre, torch.linalg.eigh(covariance).eigenvectors[:, -d:])

    def score(self, features: Float[Tensor, "n p"]) -> Float[Tensor, " n"]:
        """See `neco_score`."""
        _check_width(features, len(self.centre))
        around = features.to(self.centre.dtype) - self.centre
        return ((around @ self.basis).norm(dim=1) / around.norm(dim=1)).to(_wide(features))


@dataclass(frozen=True)
class Whitening:
    """The Cholesky factor of Σ, and the class means that it has whitened."""

    factor: Float[Tensor, "p p"]
    means: Float[Tensor, "k p"]

    @classmethod
    def of(cls, moments: ClassMoments, shrinkage: float | None = None) -> Whitening:
        """See `mahalanobis_score`."""
        seen = checked(moments)
        assert seen.within is not None
        wide = torch.promote_types(seen.means.dtype, wide_dtype(seen.means.device))
        means, within = seen.means.to(wide), seen.within.to(wide)
        level = within.trace() / len(within)
        if level <= 0:
            raise ValueError("Σ_W is 0: each class has one sample, or samples that are all the same.")
        if shrinkage is None:
            shrinkage = chosen(seen.means, seen.within, seen.counts)
        if not 0 <= shrinkage <= 1:
            raise ValueError(f"shrinkage must be a share between 0 and 1, got {shrinkage}.")
        sigma = (1 - shrinkage) * within + shrinkage * level * torch.eye(len(within), dtype=wide, device=within.device)
        factor, failed = torch.linalg.cholesky_ex(sigma)
        variances = within.diagonal().clamp(min=0)
        rounding = Rounding(seen.precision, means.square().mean(0) + variances, variances)
        if bool(failed) or _is_rounding(sigma, float(shrinkage * level), rounding):
            raise ValueError(
                f"Σ is singular with shrinkage {shrinkage:.2g}, or no more than rounding of the features along a "
                "direction: it takes a larger one, or more samples than features."
            )
        return cls(factor, torch.linalg.solve_triangular(factor, means.T, upper=False).T)

    def score(self, features: Float[Tensor, "n p"]) -> Float[Tensor, " n"]:
        """See `mahalanobis_score`."""
        _check_width(features, len(self.factor))
        h = torch.linalg.solve_triangular(self.factor, features.to(self.factor.dtype).T, upper=False).T
        return -_nearest(h, self.means).square().to(_wide(features))


def _is_rounding(sigma: Float[Tensor, "p p"], least: float, rounding: Rounding) -> bool:
    """Whether Σ, nowhere below `least`, is rounding alone along a direction, in which it would make large distances."""
    if least > STEPS * rounding.most_variance():
        return False
    values, vectors = torch.linalg.eigh(sigma)
    # Above a floor it matters how far the features themselves are rounded, not how far Σ is.
    bound = rounding.of_features(vectors).square() if least > 0 else rounding.of_variance(vectors)
    return bool((values <= STEPS * bound).any())


def _nearest(rows: Float[Tensor, "n p"], means: Float[Tensor, "k p"]) -> Float[Tensor, " n"]:
    """Distance of each row to the nearest mean, from differences: a common offset costs no digits."""
    return torch.cdist(rows, means, compute_mode="donot_use_mm_for_euclid_dist").amin(1)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _check_width(features: Tensor, p: int) -> None:
    if features.ndim != 2 or features.shape[1] != p:
        raise ValueError(f"features must be (n, {p}), a row a sample, got {tuple(features.shape)}.")
