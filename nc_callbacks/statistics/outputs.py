"""Streaming statistics of a classifier's outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric

from nc_callbacks.statistics.batches import check_integer, check_range
from nc_callbacks.statistics.metric import RecordMetric, StreamingMetric, sum_over_ranks
from nc_callbacks.statistics.moments import SoftmaxExpectations
from nc_callbacks.statistics.precision import full_precision, wide_dtype

Outputs = Literal["raw", "softmax"]

_PRODUCTS_BYTES = 64 * 2**20
"""Bound on the temporary memory of products of softmax outputs."""


class OutputErrors(StreamingMetric):
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
        with full_precision(outputs.device):
            self._make_states_mutable()
            f, y, keep, wrong = _checked(outputs, targets, self.num_classes, self.ignore_index)
            self.invalid += wrong
            if self.outputs == "softmax":
                f = f.softmax(1)
            self.moments = _merged_errors(self.moments, _batch_errors(f, y, keep))

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
        self._update_count += 1
        self._computed = None

    def _sync_dist(self, dist_sync_fn: Callable | None = None, process_group: Any | None = None) -> None:
        group = process_group or self.process_group
        n, mean, squares, off_mean, off_squares, sample_variances = self.moments
        # First the means of all ranks, then the squares around them.
        count, total, off_total = sum_over_ranks([n, n * mean, n * off_mean], group)
        common, off_common = total / count.clamp(min=1), off_total / count.clamp(min=1)
        around = [
            squares + n * (mean - common).square(),
            off_squares + n * (off_mean - off_common).square(),
            sample_variances,
        ]
        squares, off_squares, sample_variances = sum_over_ranks(around, group)
        self.moments = torch.stack([count, common, squares, off_common, off_squares, sample_variances])
        (self.invalid,) = sum_over_ranks([self.invalid], group)


def _checked(
    outputs: Tensor, targets: Tensor, k: int, ignore_index: int | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows of outputs, targets in 0…k−1, which rows count, and how many targets are out of range."""
    check_integer(targets)
    if outputs.shape != (*targets.shape, k):
        raise ValueError(
            f"outputs must be (n, k) = {(*targets.shape, k)} to go with targets of shape {tuple(targets.shape)}, "
            f"got {tuple(outputs.shape)}."
        )
    f = outputs.detach().reshape(-1, k)
    y = targets.reshape(-1).long()
    keep = torch.ones_like(y, dtype=torch.bool) if ignore_index is None else y != ignore_index
    wrong = keep & ((y < 0) | (y >= k))
    # Asking a device costs a wait; there `compute` raises.
    if y.device.type == "cpu":
        check_range(y[keep], k)
    return f.to(torch.promote_types(f.dtype, torch.float32)), y.clamp(0, k - 1), keep, wrong.sum()


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
    rounded = sample_means.to(f.dtype)
    deviations = (f - rounded[:, None]).scatter_(1, index, 0)
    # The rounding of the mean is taken out again: beside a small spread it would show.
    sample_variances = deviations.square_().sum(1, dtype=wide) / others - (sample_means - rounded).square()
    sample_variances = sample_variances.clamp(min=0)
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


class SoftmaxStatistics(RecordMetric):
    """E_j[p_ℓ] and E_j[p_ℓ p_q] over each class j of p = softmax(outputs), streamed; k³ numbers.

    Args:
        num_classes: k, at least 2.
        ignore_index: Samples with this target are left out.
        kwargs: Passed to `torchmetrics.Metric`.

    Raises:
        ValueError: There are fewer than two classes.

    Example:
        >>> statistics = SoftmaxStatistics(num_classes=2)
        >>> statistics.update(torch.zeros(2, 2), torch.tensor([0, 1]))
        >>> statistics.compute().probabilities.tolist()
        [[0.5, 0.5], [0.5, 0.5]]
    """

    full_state_update = False
    higher_is_better = None
    is_differentiable = False

    counts: Tensor
    sums: Tensor
    products: Tensor
    invalid: Tensor

    def __init__(self, num_classes: int, ignore_index: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}.")
        k, wide = num_classes, wide_dtype(self.device)
        self.add_state("counts", torch.zeros(k, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("sums", torch.zeros(k, k, dtype=wide), dist_reduce_fx="sum")
        self.add_state("products", torch.zeros(k, k, k, dtype=wide), dist_reduce_fx="sum")
        self.add_state("invalid", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.num_classes = num_classes
        self.ignore_index = ignore_index

    def update(self, outputs: Float[Tensor, "n k"], targets: Int[Tensor, " n"]) -> None:
        """Add a batch of outputs before the softmax (n, k), or (n, …, k) with targets (n, …).

        Raises:
            ValueError: Shapes do not fit, or a target lies outside 0…k−1 (off the CPU `compute` raises it).
        """
        with full_precision(outputs.device):
            self._make_states_mutable()
            f, y, keep, wrong = _checked(outputs, targets, self.num_classes, self.ignore_index)
            self.invalid += wrong
            p = torch.where(keep[:, None], f.to(self.sums.dtype).softmax(1), 0)
            self.counts.index_add_(0, y, keep.long())
            self.sums.index_add_(0, y, p)
            rows = max(1, _PRODUCTS_BYTES // (p.shape[1] ** 2 * p.element_size()))
            for some, classes in zip(p.split(rows), y.split(rows), strict=True):
                self.products.index_add_(0, classes, some[:, :, None] * some[:, None, :])

    def _sync_dist(self, dist_sync_fn: Callable | None = None, process_group: Any | None = None) -> None:
        group = process_group or self.process_group
        self.counts, self.invalid = sum_over_ranks([self.counts, self.invalid], group)
        self.sums, self.products = sum_over_ranks([self.sums, self.products], group)

    def compute(self) -> SoftmaxExpectations:
        """The expectations; NaN for a class without samples.

        Raises:
            ValueError: Targets outside 0…k−1 were passed to `update` on a device other than the CPU.
        """
        if invalid := int(self.invalid):
            raise ValueError(f"{invalid} targets lie outside 0…{self.num_classes - 1}.")
        return SoftmaxExpectations(self.sums / self.counts[:, None], self.products / self.counts[:, None, None])
