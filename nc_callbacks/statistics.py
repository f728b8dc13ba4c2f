"""Streaming class statistics: one pass over features, exact to the end of training.

Neural collapse means that the within-class variance vanishes beside the class means. There
``E[xxᵀ] − mmᵀ`` in float32 cancels to noise, so every sum here is taken of features minus a
per-class shift that lies near the class mean and stays fixed for the pass:

    d_i = x_i − s_{y_i},   S_c = Σ d_i,   Q = Σ d_i d_iᵀ,   C_c = Q_c/n_c − δ_c δ_cᵀ,   δ_c = S_c/n_c

The shift is corrected for exactly when the result is asked for. One matrix product a batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric

Covariance = Literal["none", "pooled", "per_class"]
Outputs = Literal["raw", "softmax"]

_BLOCK_ROWS = 16
"""Rows of one class that are multiplied together in the per-class products."""

_BLOCK_BYTES = 64 * 2**20
"""Bound on the temporary memory of the per-class products."""


def wide_dtype(device: torch.device) -> torch.dtype:
    """float64 where the device has it: the small sums and the final algebra are done in it."""
    return torch.float32 if device.type == "mps" else torch.float64


@dataclass(frozen=True)
class ClassMoments:
    """First and second moments of features, class by class.

    A class without samples has NaN means, traces and coordinate sums; `observed` drops such classes.

    Example:
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
        return self.means[self.present].mean(dim=0)

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
        means = self.means[self.present]
        return self.within + (self.priors[self.present][:, None] * means).T @ means

    def observed(self) -> ClassMoments:
        """The same moments without the rows of classes that have no samples."""
        keep = self.present
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
            weights = counts * spread
            pooled = (n * self.within + m * other.within + (weights[:, None] * gap).T @ gap) / (n + m).clamp(min=1)
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
        )


class _Sealed:
    """Carries a result past torchmetrics, which squeezes one-element tensors and refuses frozen dataclasses."""

    def __init__(self, moments: ClassMoments) -> None:
        self.moments = moments


class ClassStatistics(Metric):
    """Class means and covariances of features, streamed.

    Features in float16, bfloat16 or float32 are accumulated in float32, float64 in float64; `compute` does its
    algebra in float64. Each batch costs one product of the batch with itself and no synchronisation with the host.

    Args:
        num_classes: k, at least 2.
        num_features: p; by default that of the first batch.
        covariance: ``"none"`` keeps O(kp) numbers (means, traces, coordinate sums), ``"pooled"`` adds Σ_W (p × p),
            ``"per_class"`` adds every C_c (k × p × p).
        ignore_index: Samples with this target are left out.
        shift: Vectors near the class means, (k, p) or (p,), to take the sums around. By default each class takes its
            mean in the first batch in which it occurs.
        kwargs: Passed to `torchmetrics.Metric`.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]])
        >>> statistics = ClassStatistics(num_classes=2)
        >>> for x, y in zip(features, torch.tensor([0, 0, 1])):
        ...     statistics.update(x[None], y[None])
        >>> statistics.compute().within.tolist()
        [[0.6666666666666666, 0.0], [0.0, 0.0]]
    """

    full_state_update = True
    higher_is_better = None
    is_differentiable = False

    counts: Tensor
    shift: Tensor
    sums: Tensor
    squares: Tensor
    coordinate_squares: Tensor
    products: Tensor
    nonfinite: Tensor
    invalid: Tensor

    def __init__(
        self,
        num_classes: int,
        num_features: int | None = None,
        covariance: Covariance = "pooled",
        ignore_index: int | None = None,
        shift: Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2 (collapse compares classes), got {num_classes}.")
        if covariance not in ("none", "pooled", "per_class"):
            raise ValueError(f'covariance must be "none", "pooled" or "per_class", got {covariance!r}.')
        if shift is not None:
            if shift.shape[-1:] != (num_features or shift.shape[-1],) or shift.shape[:-1] not in ((), (num_classes,)):
                raise ValueError(
                    f"shift must have shape (num_features,) or (num_classes, num_features) = "
                    f"({num_classes}, {num_features or 'p'}), got {tuple(shift.shape)}."
                )
            num_features = shift.shape[-1]
        self.num_classes = num_classes
        self.num_features = num_features
        self.covariance = covariance
        self.ignore_index = ignore_index
        self.shift_is_given = shift is not None

        k, p = num_classes, num_features or 0
        wide = wide_dtype(self.device)
        start = torch.zeros(k, p) if shift is None else shift.detach().float().expand(k, p).clone()
        self.add_state("counts", torch.zeros(k, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("shift", start, dist_reduce_fx="mean")
        self.add_state("sums", torch.zeros(k, p), dist_reduce_fx="sum")
        self.add_state("squares", torch.zeros(k, dtype=wide), dist_reduce_fx="sum")
        self.add_state("coordinate_squares", torch.zeros(k, dtype=wide), dist_reduce_fx="sum")
        self.add_state("products", torch.zeros(self._products_shape(p)), dist_reduce_fx="sum")
        self.add_state("nonfinite", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("invalid", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, features: Float[Tensor, "n *p"], targets: Int[Tensor, " n"]) -> None:
        """Add a batch.

        Args:
            features: (n, p); (n, p, 1, 1) and the like are flattened; (n, …, p) with targets (n, …) counts every
                position as a sample.
            targets: Class indices in 0…k−1, or `ignore_index`.

        Raises:
            ValueError: Shapes or types do not fit, or (on the CPU; elsewhere `compute` raises it, since asking would
                wait for the device) a target lies outside 0…k−1.
        """
        with torch.inference_mode(False), torch.no_grad(), _exact_products(features.device):
            x, y = self._flattened(features, targets)
            self._accommodate(x)
            x = x.detach().to(self.sums.dtype)
            keep = None if self.ignore_index is None else y != self.ignore_index
            y = self._checked(y, keep)

            ones = torch.ones_like(y) if keep is None else keep.long()
            if not self.shift_is_given:
                self._set_shift_of_new_classes(x, y, ones)
            d = x - self.shift.index_select(0, y)
            if keep is not None:
                d = torch.where(keep[:, None], d, torch.zeros_like(d))

            norms = torch.linalg.vecdot(d, d)
            self.counts.index_add_(0, y, ones)
            self.sums.index_add_(0, y, d)
            self.squares.index_add_(0, y, norms.to(self.squares.dtype))
            self.coordinate_squares.index_add_(0, y, d.sum(1).to(self.squares.dtype).square())
            self.nonfinite += (~norms.isfinite()).sum()
            if self.covariance == "pooled":
                self.products.addmm_(d.T, d)
            elif self.covariance == "per_class":
                self._add_class_products(d, y)

    def compute(self) -> ClassMoments:
        """The moments of all samples so far (over all ranks, where torch.distributed is initialised).

        Raises:
            ValueError: Targets outside 0…k−1 were passed to `update` on a device other than the CPU.
        """
        if invalid := int(self.invalid):
            raise ValueError(
                f"{invalid} targets lie outside 0…{self.num_classes - 1} (num_classes={self.num_classes}). "
                "Pass class indices, or set ignore_index for a padding label."
            )
        wide = wide_dtype(self.sums.device)
        n = self.counts.to(wide)
        present = self.counts > 0
        nan = torch.tensor(torch.nan, dtype=wide, device=n.device)
        delta = self.sums.to(wide) / n.clamp(min=1)[:, None]
        divisor = torch.where(present, n, nan)
        traces = (self.squares.to(wide) / divisor - delta.square().sum(1)).clamp(min=0)
        coordinate_sums = (self.coordinate_squares.to(wide) / divisor - delta.sum(1).square()).clamp(min=0)
        within = covariances = None
        if self.covariance == "pooled":
            scatter = self.products.to(wide) - (n[:, None] * delta).T @ delta
            within = _symmetric(scatter) / n.sum()
        elif self.covariance == "per_class":
            covariances = _symmetric(
                self.products.to(wide) / divisor[:, None, None] - delta[:, :, None] * delta[:, None, :]
            )
            within = torch.einsum("c,cpq->pq", n[present] / n.sum(), covariances[present])
        return ClassMoments(
            counts=self.counts.clone(),
            means=torch.where(present[:, None], self.shift.to(wide) + delta, nan),
            traces=traces,
            coordinate_sums=coordinate_sums,
            within=within,
            covariances=covariances,
            nonfinite=int(self.nonfinite),
        )

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the samples of another `ClassStatistics` (or its `metric_state`) to this one.

        Raises:
            ValueError: The other is no `ClassStatistics` with the same classes, features and covariance.
        """
        state = incoming_state.metric_state if isinstance(incoming_state, ClassStatistics) else incoming_state
        if not isinstance(state, dict) or state.keys() != self._defaults.keys():
            raise ValueError(f"Expected a ClassStatistics or its metric_state, got {type(incoming_state).__name__}.")
        theirs = cast(dict[str, Tensor], state)
        if not int(theirs["counts"].sum()):
            return
        self._accommodate(theirs["sums"])
        mine = cast(dict[str, Tensor], self.metric_state)
        for name in ("sums", "products"):
            if mine[name].shape != theirs[name].shape:
                raise ValueError(
                    f"Cannot merge statistics whose {name} have shapes {tuple(mine[name].shape)} and "
                    f"{tuple(theirs[name].shape)}: classes, features and covariance must be the same."
                )
        shift = torch.where((self.counts > 0)[:, None], mine["shift"], theirs["shift"])
        mine, theirs = _rebased(mine, shift), _rebased(theirs, shift)
        for name in self._defaults:
            setattr(self, name, shift if name == "shift" else mine[name] + theirs[name])
        self._computed = None

    def _sync_dist(self, dist_sync_fn: Callable | None = None, process_group: Any | None = None) -> None:
        """Sum the states of all ranks, after agreeing on one shift: the bytes do not depend on the number of ranks."""
        group = process_group or self.process_group
        reduce = functools.partial(dist.all_reduce, group=group)
        # A rank that has seen no sample knows neither p nor the precision yet.
        layout = torch.tensor([self.sums.shape[1], self.sums.dtype.itemsize], device=self.sums.device)
        reduce(layout, op=dist.ReduceOp.MAX)
        features, itemsize = layout.tolist()
        dtype = torch.float64 if itemsize == 8 else torch.float32
        self._accommodate(torch.zeros(0, features, dtype=dtype, device=self.sums.device))

        state = cast(dict[str, Tensor], self.metric_state)
        integers = torch.cat([state["counts"], state["nonfinite"][None], state["invalid"][None]])
        reduce(integers)
        if not self.shift_is_given:
            centre = state["counts"][:, None] * state["shift"] + state["sums"]
            reduce(centre)
            state = _rebased(state, centre / integers[: self.num_classes, None].clamp(min=1))
        names = ["sums", "squares", "coordinate_squares", "products"]
        flat = torch.cat([state[name].flatten().to(dtype) for name in names])
        reduce(flat)
        for name, part in zip(names, flat.split([state[name].numel() for name in names]), strict=True):
            setattr(self, name, part.view_as(state[name]).to(state[name].dtype))
        self.shift = state["shift"]
        self.counts, self.nonfinite, self.invalid = integers[:-2], integers[-2], integers[-1]

    def _wrap_compute(self, compute: Callable) -> Callable:
        wrapped = super()._wrap_compute(lambda: _Sealed(compute()))

        @functools.wraps(compute)
        def unsealed() -> ClassMoments:
            return cast(_Sealed, wrapped()).moments

        return unsealed

    def _apply(self, fn: Callable, exclude_state: Any = "") -> Any:
        self._computed = None
        return super()._apply(fn, exclude_state)

    def _products_shape(self, p: int) -> tuple[int, ...]:
        return {"none": (0,), "pooled": (p, p), "per_class": (self.num_classes, p, p)}[self.covariance]

    def _flattened(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if not features.is_floating_point():
            raise ValueError(f"features must be floating point, got {features.dtype}.")
        if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
            raise ValueError(f"targets must be integer class indices, got {targets.dtype}.")
        if targets.ndim <= 1:
            x, y = features.flatten(1) if features.ndim > 2 else features, targets.reshape(-1)
        else:
            x, y = features.reshape(-1, features.shape[-1]), targets.reshape(-1)
        if x.ndim != 2 or len(x) != len(y) or (targets.ndim > 1 and features.shape[:-1] != targets.shape):
            raise ValueError(
                f"features and targets must have the same length: expected features (n, p) with targets (n,), or "
                f"features (n, …, p) with targets (n, …); got {tuple(features.shape)} and {tuple(targets.shape)}."
            )
        known = self.num_features or self.sums.shape[1]
        if known and x.shape[1] != known:
            raise ValueError(
                f"features must have {known} entries a sample, as set or as in the first batch, got {x.shape[1]} "
                f"(features of shape {tuple(features.shape)})."
            )
        return x, y.long()

    def _accommodate(self, x: Tensor) -> None:
        """Size the states for the first batch, and widen them when float64 features come."""
        if not self.sums.shape[1] and x.shape[1]:
            p = x.shape[1]
            self.shift, self.sums = self.shift.new_zeros(self.num_classes, p), self.sums.new_zeros(self.num_classes, p)
            self.products = self.products.new_zeros(self._products_shape(p))
        if x.dtype == torch.float64 and self.sums.dtype != torch.float64:
            self.shift, self.sums, self.products = self.shift.double(), self.sums.double(), self.products.double()

    def _checked(self, y: Tensor, keep: Tensor | None) -> Tensor:
        wrong = (y < 0) | (y >= self.num_classes)
        if keep is not None:
            wrong &= keep
        if y.device.type != "cpu":
            self.invalid += wrong.sum()
        elif wrong.any():
            raise ValueError(
                f"targets must lie in 0…{self.num_classes - 1} (num_classes={self.num_classes}), got "
                f"{sorted(set(y[wrong].tolist()))[:5]}. Pass class indices, or set ignore_index for a padding label."
            )
        return y.clamp(0, self.num_classes - 1)

    def _set_shift_of_new_classes(self, x: Tensor, y: Tensor, ones: Tensor) -> None:
        new = (self.counts == 0).index_select(0, y)
        # On the CPU asking costs nothing; elsewhere it would wait for the device, and the work is small.
        if y.device.type == "cpu" and not new.any():
            return
        batch_counts = torch.zeros_like(self.counts).index_add_(0, y, ones)
        weight = (ones / batch_counts.clamp(min=1).index_select(0, y)).to(x.dtype)
        # A sample that is not finite must not hide in the shift: it is counted, and the others are not.
        counted = (new & (ones > 0))[:, None] & x.isfinite()
        self.shift.index_add_(0, y, torch.where(counted, x * weight[:, None], torch.zeros_like(x)))

    def _add_class_products(self, d: Tensor, y: Tensor) -> None:
        """Add d_i d_iᵀ to the class of each sample: rows sorted by class, cut into blocks that hold one class each.

        The number of blocks is bounded by shapes alone, so the host never waits for the counts.
        """
        n, p = d.shape
        counts = torch.zeros_like(self.counts).index_add_(0, y, torch.ones_like(y))
        blocks = (counts + _BLOCK_ROWS - 1) // _BLOCK_ROWS
        ends = blocks.cumsum(0)
        order = y.argsort(stable=True)
        classes = y[order]
        rank = torch.arange(n, device=y.device) - (counts.cumsum(0) - counts)[classes]
        rows = (ends - blocks)[classes] * _BLOCK_ROWS + rank
        total = n // _BLOCK_ROWS + min(self.num_classes, n) + 1
        padded = d.new_zeros(total * _BLOCK_ROWS, p).index_copy_(0, rows, d[order]).view(total, _BLOCK_ROWS, p)
        owner = torch.searchsorted(ends, torch.arange(total, device=y.device), right=True)
        owner = owner.clamp(max=self.num_classes - 1)
        step = max(1, _BLOCK_BYTES // (p * p * d.element_size()))
        for part, owners in zip(padded.split(step), owner.split(step), strict=True):
            outer = torch.empty(len(part), p, p, dtype=d.dtype, device=d.device)
            self.products.index_add_(0, owners, torch.bmm(part.mT, part, out=outer))


class OutputErrors(Metric):
    """Means and spreads of the errors of a classifier's outputs (symmetric quasi-interpolation, SQI), streamed.

    For sample i with label y_i and outputs f_i: ε_i = 1 − f_i[y_i], and ε̃_{i,c} = f_i[c] for each c ≠ y_i
    (Lindegaard 2021, eq. 7). No outputs are kept; standard deviations are exact where they are small beside the mean,
    for every batch is reduced around its own mean and merged by the pairwise formula of Chan et al. (1979).

    Args:
        num_classes: k, at least 2.
        outputs: ``"raw"`` takes the outputs as they come (squared-error training), ``"softmax"`` takes their softmax.
        ignore_index: Samples with this target are left out.
        kwargs: Passed to `torchmetrics.Metric`.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> errors = OutputErrors(num_classes=3)
        >>> errors.update(torch.tensor([[0.9, 0.05, 0.05], [0.1, 0.8, 0.1]]), torch.tensor([0, 1]))
        >>> {name: round(value.item(), 4) for name, value in errors.compute().items()}["sqi_ratio"]
        1.0
    """

    full_state_update = True
    higher_is_better = None
    is_differentiable = False

    moments: Tensor
    invalid: Tensor

    def __init__(
        self, num_classes: int, outputs: Outputs = "raw", ignore_index: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}.")
        if outputs not in ("raw", "softmax"):
            raise ValueError(f'outputs must be "raw" or "softmax", got {outputs!r}.')
        self.num_classes = num_classes
        self.outputs = outputs
        self.ignore_index = ignore_index
        # n; mean and summed squared deviation of ε; mean and summed squared deviation of ε̃, averaged over the k − 1
        # classes of a sample; sum over samples of the variance of ε̃ within the sample.
        self.add_state("moments", torch.zeros(6, dtype=wide_dtype(self.device)), dist_reduce_fx=None)
        self.add_state("invalid", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, outputs: Float[Tensor, "n k"], targets: Int[Tensor, " n"]) -> None:
        """Add a batch of outputs (n, k), or (n, …, k) with targets (n, …).

        Raises:
            ValueError: Shapes do not fit, or a target lies outside 0…k−1 (off the CPU `compute` raises it).
        """
        with torch.inference_mode(False), torch.no_grad():
            if outputs.shape != (*targets.shape, self.num_classes):
                raise ValueError(
                    f"outputs must be (n, k) = {(*targets.shape, self.num_classes)} to go with targets of shape "
                    f"{tuple(targets.shape)}, got {tuple(outputs.shape)}."
                )
            f = outputs.detach().reshape(-1, self.num_classes)
            f = f.to(torch.promote_types(f.dtype, torch.float32))
            y = targets.reshape(-1).long()
            keep = torch.ones_like(y, dtype=torch.bool) if self.ignore_index is None else y != self.ignore_index
            wrong = keep & ((y < 0) | (y >= self.num_classes))
            if y.device.type != "cpu":
                self.invalid += wrong.sum()
            elif wrong.any():
                raise ValueError(
                    f"targets must lie in 0…{self.num_classes - 1} (num_classes={self.num_classes}), got "
                    f"{sorted(set(y[wrong].tolist()))[:5]}."
                )
            if self.outputs == "softmax":
                f = f.softmax(1)
            self.moments = _merged_errors(self.moments, _batch_errors(f, y.clamp(0, self.num_classes - 1), keep))

    def compute(self) -> dict[str, Tensor]:
        """The SQI quantities by their names: dimensionless, in units of the outputs (one-hot labels are 1).

        Raises:
            ValueError: Targets outside 0…k−1 were passed to `update` on a device other than the CPU.
        """
        if invalid := int(self.invalid):
            raise ValueError(f"{invalid} targets lie outside 0…{self.num_classes - 1}.")
        n, mean, squares, off_mean, off_squares, sample_variances = self.moments
        others = self.num_classes - 1
        std, off_std = (squares / n).sqrt(), (off_squares / n).sqrt()
        return {
            "sqi_epsilon": mean,
            "sqi_epsilon_off": off_mean,
            "sqi_ratio": mean / (others * off_mean),
            "sqi_gap": mean - others * off_mean,
            "sqi_epsilon_rel_std": std / mean,
            "sqi_epsilon_off_rel_std": off_std / off_mean,
            "sqi_epsilon_std": std,
            "sqi_epsilon_off_std": off_std,
            "sqi_epsilon_off_sample_rel_std": (sample_variances / n).sqrt() / off_mean,
        }

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the samples of another `OutputErrors` (or its `metric_state`) to this one.

        Raises:
            ValueError: The other is no `OutputErrors` state.
        """
        state = incoming_state.metric_state if isinstance(incoming_state, OutputErrors) else incoming_state
        if not isinstance(state, dict) or state.keys() != self._defaults.keys():
            raise ValueError(f"Expected an OutputErrors or its metric_state, got {type(incoming_state).__name__}.")
        self.moments = _merged_errors(self.moments, cast(Tensor, state["moments"]))
        self.invalid = self.invalid + cast(Tensor, state["invalid"])
        self._computed = None

    def _sync_dist(self, dist_sync_fn: Callable | None = None, process_group: Any | None = None) -> None:
        group = process_group or self.process_group
        gathered = [torch.empty_like(self.moments) for _ in range(dist.get_world_size(group))]
        dist.all_gather(gathered, self.moments, group=group)
        self.moments = functools.reduce(_merged_errors, gathered)
        invalid = self.invalid.clone()
        dist.all_reduce(invalid, group=group)
        self.invalid = invalid


def _batch_errors(f: Tensor, y: Tensor, keep: Tensor) -> Tensor:
    """The six numbers of `OutputErrors.moments` for one batch, in two passes over it."""
    wide = wide_dtype(f.device)
    index, others = y[:, None], f.shape[1] - 1
    weight = keep.to(wide)
    n = weight.sum()
    f = torch.where(keep[:, None], f, torch.zeros_like(f))
    epsilon = 1 - f.gather(1, index).squeeze(1).to(wide)
    mean = (weight * epsilon).sum() / n.clamp(min=1)
    sample_means = f.scatter(1, index, 0).sum(1, dtype=wide) / others
    off_mean = (weight * sample_means).sum() / n.clamp(min=1)
    deviations = (f - sample_means[:, None].to(f.dtype)).scatter_(1, index, 0)
    sample_variances = deviations.square_().sum(1, dtype=wide) / others
    return torch.stack(
        [
            n,
            mean,
            (weight * (epsilon - mean).square()).sum(),
            off_mean,
            (weight * (sample_variances + (sample_means - off_mean).square())).sum(),
            (weight * sample_variances).sum(),
        ]
    )


def _merged_errors(a: Tensor, b: Tensor) -> Tensor:
    """Pairwise formula of Chan et al. for the six numbers of `OutputErrors.moments`."""
    n = a[0] + b[0]
    share = b[0] / n.clamp(min=1)
    gap, off_gap = b[1] - a[1], b[3] - a[3]
    weight = a[0] * share
    return torch.stack(
        [
            n,
            a[1] + share * gap,
            a[2] + b[2] + weight * gap.square(),
            a[3] + share * off_gap,
            a[4] + b[4] + weight * off_gap.square(),
            a[5] + b[5],
        ]
    )


def _rebased(state: dict[str, Tensor], shift: Tensor) -> dict[str, Tensor]:
    """The same sums taken around another shift: Σ (d + g) and Σ (d + g)(d + g)ᵀ with g = old − new shift."""
    n = state["counts"]
    gap = torch.where((n > 0)[:, None], state["shift"] - shift, torch.zeros_like(shift))
    sums, wide = state["sums"], state["squares"].dtype
    g, s = gap.to(wide), sums.to(wide)
    g_sum, s_sum = g.sum(1), s.sum(1)
    products = state["products"]
    if products.ndim == 2:
        cross = gap.T @ sums
        products = products + cross + cross.T + (n[:, None] * gap).T @ gap
    elif products.ndim == 3:
        cross = gap[:, :, None] * sums[:, None, :]
        products = products + cross + cross.mT + n[:, None, None] * gap[:, :, None] * gap[:, None, :]
    return {
        **state,
        "shift": shift,
        "sums": sums + n[:, None] * gap,
        "squares": state["squares"] + 2 * (g * s).sum(1) + n * g.square().sum(1),
        "coordinate_squares": state["coordinate_squares"] + 2 * g_sum * s_sum + n * g_sum.square(),
        "products": products,
    }


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2


@contextmanager
def _exact_products(device: torch.device) -> Iterator[None]:
    """Keep TF32 out of float32 products on a GPU: its 10-bit mantissa would undo the shifted sums."""
    if device.type != "cuda":
        yield
        return
    # torch 2.9 replaced the boolean by a name, and reading one after setting the other is an error there.
    settings = torch.backends.cuda.matmul
    name, exact = ("fp32_precision", "ieee") if hasattr(settings, "fp32_precision") else ("allow_tf32", False)
    before = getattr(settings, name)
    setattr(settings, name, exact)
    try:
        yield
    finally:
        setattr(settings, name, before)
