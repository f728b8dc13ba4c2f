"""Streaming statistics of a classifier's outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric

from nc_callbacks.statistics.errors import ErrorMoments, batch_errors, checked_outputs
from nc_callbacks.statistics.metric import RecordMetric, StreamingMetric, sum_over_ranks
from nc_callbacks.statistics.moments import SoftmaxExpectations
from nc_callbacks.statistics.precision import full_precision, wide_dtype

Outputs = Literal["raw", "softmax"]

_PRODUCTS_BYTES = 64 * 2**20
"""Bound on the temporary memory of products of softmax outputs."""

_SLICE_BYTES = 16 * 2**20
"""Bound on the outputs that are worked on at once on a CPU, in float64."""

_LEAST_MEAN = 1e-150
"""Mean error below which squared deviations leave the range of float64."""


class OutputErrors(StreamingMetric):
    """Means and spreads of the errors of a classifier's outputs (symmetric quasi-interpolation, SQI), streamed.

    For sample i with label y_i and outputs f_i: ε_i = 1 − f_i[y_i], and ε̃_{i,c} = f_i[c] for each c ≠ y_i
    (Lindegaard 2021, eq. 7). After a softmax ε_i is summed from the other probabilities, which are taken from the
    logits: it is right down to the smallest float, where 1 − f_i[y_i] has no digits left. No outputs are kept; standard
    deviations are exact where they are small beside the mean, for every batch is reduced around its own mean and merged
    by the pairwise formula of Chan et al. (1979). Everything is summed in float64: B batches cost less than B · 2⁻⁵²
    of a mean or a squared deviation, 3e-7 where a thousand million samples come one by one.

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
    kind: Tensor

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
        # Read as `ErrorMoments`.
        self.add_state("moments", torch.zeros(6, dtype=wide_dtype(self.device)), dist_reduce_fx=None)
        self.add_state("invalid", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        # k and whether after a softmax: what a state by itself does not say.
        self.add_state("kind", torch.tensor([num_classes, outputs == "softmax"]), dist_reduce_fx=None)

    def update(self, outputs: Float[Tensor, "n k"], targets: Int[Tensor, " n"]) -> None:
        """Add a batch of outputs (n, k), or (n, …, k) with targets (n, …), of any type that holds integers.

        Raises:
            ValueError: Shapes do not fit, or a target is no class index in 0…k−1 (off the CPU `compute` raises it).
        """
        with full_precision(outputs.device):
            self._make_states_mutable()
            f, y, keep, wrong = checked_outputs(outputs, targets, self.num_classes, self.ignore_index)
            self.invalid += wrong
            moments = ErrorMoments(*self.moments)
            rows = len(f) if f.device.type != "cpu" else _SLICE_BYTES // (8 * f.shape[1])
            parts = zip(*(tensor.split(max(1, rows)) for tensor in (f, y, keep)), strict=True)
            for some, labels, kept in parts:
                moments = moments.merged(batch_errors(some, labels, kept, self.outputs == "softmax"))
            self.moments = torch.stack(moments)

    def compute(self) -> dict[str, Tensor]:
        """The SQI quantities by their names: dimensionless, in units of the outputs (one-hot labels are 1).

        Raises:
            ValueError: Targets outside 0…k−1 were passed to `update` on a device other than the CPU.
        """
        if invalid := int(self.invalid):
            raise ValueError(f"{invalid} targets lie outside 0…{self.num_classes - 1}, or are no integers.")
        n, mean, squares, off_mean, off_squares, sample_variances = ErrorMoments(*self.moments)
        others = self.num_classes - 1
        if self.outputs == "softmax":
            lost = torch.where(off_mean < _LEAST_MEAN, torch.nan, 1.0)
            squares, off_squares, sample_variances = squares * lost, off_squares * lost, sample_variances * lost
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
            ValueError: The other is no `OutputErrors` state, or of another number of classes or kind of outputs.
        """
        state = incoming_state.metric_state if isinstance(incoming_state, OutputErrors) else incoming_state
        if not isinstance(state, dict) or {*state, "kind"} != self._defaults.keys():
            raise ValueError(f"Expected an OutputErrors or its metric_state, got {type(incoming_state).__name__}.")
        theirs = cast(dict[str, Tensor], state)
        if "kind" in theirs and (message := self._other_kind(theirs["kind"])):
            raise ValueError(f"Cannot merge: {message}.")
        device = self.moments.device
        moments = ErrorMoments(*self.moments).merged(ErrorMoments(*theirs["moments"].to(device)))
        self.moments = torch.stack(moments)
        self.invalid = self.invalid + theirs["invalid"].to(device)
        self._update_count += 1
        self._computed = None

    def _other_kind(self, kind: Tensor) -> str | None:
        """Difference of another state's kind, in words."""
        if kind.tolist() == self.kind.tolist():
            return None
        (k, softmax), outputs = kind.tolist(), {0: "raw", 1: "softmax"}
        return (
            f"these are the errors of {self.outputs} outputs of {self.num_classes} classes, those of "
            f"{outputs[softmax]} outputs of {k} classes"
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        # Saved before the kind was a state.
        if f"{prefix}moments" in state_dict:
            state_dict.setdefault(f"{prefix}kind", self.kind)
        if (kind := state_dict.get(f"{prefix}kind")) is not None and (message := self._other_kind(kind)):
            errors: list[str] = others[-1]
            errors.append(f"{message[0].upper()}{message[1:]}.")
            return
        super()._load_from_state_dict(state_dict, prefix, *others)

    def _sync_dist(self, dist_sync_fn: Callable | None = None, process_group: Any | None = None) -> None:
        group = process_group or self.process_group
        n, mean, squares, off_mean, off_squares, sample_variances = ErrorMoments(*self.moments)
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
            f, y, keep, wrong = checked_outputs(outputs, targets, self.num_classes, self.ignore_index)
            self.invalid += wrong
            p = torch.where(keep[:, None], f.to(self.sums.dtype).softmax(1), 0)
            self.counts.index_add_(0, y, keep.long())
            self.sums.index_add_(0, y, p)
            rows = max(1, _PRODUCTS_BYTES // (p.shape[1] ** 2 * p.element_size()))
            for some, classes in zip(p.split(rows), y.split(rows), strict=True):
                self.products.index_add_(0, classes, some[:, :, None] * some[:, None, :])

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the samples of another `SoftmaxStatistics` (or its `metric_state`) to this one.

        Raises:
            ValueError: The other is no `SoftmaxStatistics` state of as many classes.
        """
        state = incoming_state.metric_state if isinstance(incoming_state, SoftmaxStatistics) else incoming_state
        if not isinstance(state, dict) or state.keys() != self._defaults.keys():
            raise ValueError(f"Expected a SoftmaxStatistics or its metric_state, got {type(incoming_state).__name__}.")
        theirs = cast(dict[str, Tensor], state)
        if theirs["products"].shape != self.products.shape:
            raise ValueError(f"Cannot merge: {len(self.counts)} classes here, {len(theirs['counts'])} there.")
        for name in self._defaults:
            mine = getattr(self, name)
            setattr(self, name, mine + theirs[name].to(mine.device))
        self._update_count += 1
        self._computed = None

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
            raise ValueError(f"{invalid} targets lie outside 0…{self.num_classes - 1}, or are no integers.")
        return SoftmaxExpectations(self.sums / self.counts[:, None], self.products / self.counts[:, None, None])
