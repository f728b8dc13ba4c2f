"""Results of a pass: moments of features and of softmax outputs, class by class."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class ClassMoments:
    """First and second moments of features, class by class.

    A class without samples has NaN means, traces and coordinate sums; `observed` drops such classes.

    `ClassStatistics` gives means, traces and coordinate sums in float64, covariances too up to 32 MiB, and beyond that
    in float32 unless the features were float64. They are those of the features as they were given, but for the sums'
    own rounding, u = 2⁻²³ (2⁻⁵² for float64 features): an entry of a covariance is out by some u √(C_ii C_jj), and
    by 32 times as much at the worst (equal numbers summed over and over), whatever the common offset and the number of
    samples. The features carry their own rounding,
    ε = `precision` of their size, which weighs more: with h the root mean square of ‖x‖ and η = ε h / 2, the means (in
    their mean square over samples) are out by at most η from those of features in exact arithmetic, and Σ_W by
    2 η √(tr Σ_W) + η² in the trace norm and so in the others (x + e with mean ‖e‖² ≤ η²). Layers before may have
    multiplied ε by a few.

    Example:
        >>> from nc_callbacks import ClassStatistics
        >>> statistics = ClassStatistics(num_classes=2)
        >>> statistics.update(torch.tensor([[0.0, 1.0], [2.0, 1.0], [5.0, 5.0]]), torch.tensor([0, 0, 1]))
        >>> moments = statistics.compute()
        >>> moments.means.tolist()
        [[1.0, 1.0], [5.0, 5.0]]
        >>> moments.traces.tolist()
        [1.0, 0.0]
    """

    counts: Int[Tensor, " k"]
    """n_c, samples of each class."""
    means: Float[Tensor, "k p"]
    """m_c, class means."""
    traces: Float[Tensor, " k"]
    """v_c = tr C_c, with C_c the population covariance (divisor n_c) of class c."""
    coordinate_sums: Float[Tensor, " k"]
    """1ᵀ C_c 1, the variance of the sum of all coordinates."""
    within: Float[Tensor, "p p"] | None = None
    """Σ_W = Σ_c π_c C_c, or None where it was not gathered."""
    covariances: Float[Tensor, "k p p"] | None = None
    """C_c, or None where they were not gathered."""
    nonfinite: int = 0
    """Samples whose features hold NaN or infinity (or overflow when squared)."""
    precision: float = field(default=0.0, kw_only=True)
    """ε of the features, the coarsest of the batches: 2⁻²³ for float32, 2⁻¹⁰ float16, 2⁻⁷ bfloat16, 2⁻⁵² float64.

    Numbers near 1 in that type lie ε apart, so features of size h are known to ε·h/2. By default that of the means.
    """

    def __post_init__(self) -> None:
        if not self.precision:
            object.__setattr__(self, "precision", torch.finfo(self.means.dtype).eps)

    def __repr__(self) -> str:
        """A line.

        Example:
            >>> ClassMoments(torch.tensor([3, 0]), torch.zeros(2, 5), torch.zeros(2), torch.zeros(2))
            ClassMoments(3 samples, 1 of 2 classes, 5 features, without covariances)
        """
        k, p = self.means.shape
        found, present = int(self.counts.sum()), int(self.present.sum())
        classes = f"{k} classes" if present == k else f"{present} of {k} classes"
        gathered = "Σ_W" if self.within is not None else "without covariances"
        if self.covariances is not None:
            gathered += ", covariances by class"
        broken = f", {self.nonfinite} not finite" if self.nonfinite else ""
        return f"{type(self).__name__}({found:,} samples{broken}, {classes}, {p:,} features, {gathered})"

    @property
    def present(self) -> Bool[Tensor, " k"]:
        """Which classes have samples."""
        return self.counts > 0

    @property
    def priors(self) -> Float[Tensor, " k"]:
        """π_c = n_c / n."""
        return self.counts.to(self.means.dtype) / self.counts.sum()

    @property
    def global_mean(self) -> Float[Tensor, " p"]:
        """m = (1/k) Σ_c m_c over the classes that have samples (not weighted by their counts)."""
        return self.observed().means.mean(dim=0)

    @property
    def sample_mean(self) -> Float[Tensor, " p"]:
        """Σ_c π_c m_c, the mean over samples."""
        return self.priors[self.present] @ self.means[self.present]

    @property
    def centred_means(self) -> Float[Tensor, "k p"]:
        """M, with rows μ_c = m_c − m."""
        return self.means - self.global_mean

    @property
    def between(self) -> Float[Tensor, "p p"]:
        """Σ_B = (1/k) Σ_c μ_c μ_cᵀ over the classes that have samples."""
        centred = self.centred_means[self.present]
        return centred.T @ centred / len(centred)

    @property
    def second_moment(self) -> Float[Tensor, "p p"]:
        """(1/n) Σ_i x_i x_iᵀ = Σ_W + Σ_c π_c m_c m_cᵀ.

        Raises:
            ValueError: Σ_W was not gathered (``covariance="none"``).
        """
        if self.within is None:
            raise ValueError(
                "second_moment needs the within-class covariance, but these moments were gathered with "
                'covariance="none". Use ClassStatistics(..., covariance="pooled") or "per_class".'
            )
        seen = self.observed()
        return self.within + (seen.priors[:, None] * seen.means).T @ seen.means

    def observed(self) -> ClassMoments:
        """The same moments without the rows of classes that have no samples."""
        keep = self.present
        if keep.all():
            return self
        return replace(
            self,
            counts=self.counts[keep],
            means=self.means[keep],
            traces=self.traces[keep],
            coordinate_sums=self.coordinate_sums[keep],
            covariances=None if self.covariances is None else self.covariances[keep],
        )

    def merge(self, other: ClassMoments) -> ClassMoments:
        """Moments of both sets of samples together, by the pairwise formula of Chan, Golub & LeVeque (1979).

        Covariances are kept where both sides have them.

        Raises:
            ValueError: The two differ in the number of classes or features.
        """
        if self.means.shape != other.means.shape:
            raise ValueError(
                f"merge expects moments of the same classes and features, got means of shape "
                f"{tuple(self.means.shape)} and {tuple(other.means.shape)}."
            )
        dtype = torch.promote_types(self.means.dtype, other.means.dtype)
        counts = self.counts + other.counts
        share = other.counts.to(dtype) / counts.clamp(min=1)
        mine, theirs = self.present, other.present
        # An absent side takes the other's mean: its weight is 0, and NaN · 0 would be NaN.
        own_means = torch.where(mine[:, None], self.means, other.means)
        gap = torch.where((mine & theirs)[:, None], other.means - self.means, torch.zeros_like(own_means))
        spread = (1 - share) * share

        def mixed(a: Tensor, b: Tensor, correction: Tensor) -> Tensor:
            weight = share.view(-1, *(1,) * (a.ndim - 1))
            own = torch.where(mine.view(weight.shape), a, b)
            their = torch.where(theirs.view(weight.shape), b, a)
            return (1 - weight) * own + weight * their + correction

        pooled = None
        if self.within is not None and other.within is not None:
            n, m = self.counts.sum().to(dtype), other.counts.sum().to(dtype)
            own, their = (torch.where(total > 0, w, 0) for total, w in ((n, self.within), (m, other.within)))
            weights = counts * spread
            pooled = (n * own + m * their + (weights[:, None] * gap).T @ gap) / (n + m)
        covariances = None
        if self.covariances is not None and other.covariances is not None:
            outer = spread[:, None, None] * gap[:, :, None] * gap[:, None, :]
            covariances = mixed(self.covariances, other.covariances, outer)
        return ClassMoments(
            counts=counts,
            means=own_means + share[:, None] * gap,
            traces=mixed(self.traces, other.traces, spread * gap.square().sum(1)),
            coordinate_sums=mixed(self.coordinate_sums, other.coordinate_sums, spread * gap.sum(1).square()),
            within=pooled,
            covariances=covariances,
            nonfinite=self.nonfinite + other.nonfinite,
            precision=max(self.precision, other.precision),
        )


@dataclass(frozen=True)
class SoftmaxExpectations:
    """Expectations over each class j of the softmax outputs p of a classifier.

    Example:
        >>> SoftmaxExpectations(torch.full((2, 2), 0.5), products=torch.full((2, 2, 2), 0.25)).products.sum()
        tensor(2.)
    """

    probabilities: Float[Tensor, "k k"]
    """E_j[p_ℓ], row j."""
    products: Float[Tensor, "k k k"]
    """E_j[p_ℓ p_q], matrix j."""
