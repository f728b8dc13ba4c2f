"""Streaming class statistics: one pass over features, exact to the end of training.

Neural collapse means that the within-class variance vanishes beside the class means. There
``E[xxᵀ] − mmᵀ`` in float32 cancels to noise, so every sum here is taken of features minus a
per-class shift that lies near the class mean and stays fixed for the pass:

    d_i = x_i − s_{y_i},   S_c = Σ d_i,   Q = Σ d_i d_iᵀ,   C_c = Q_c/n_c − δ_c δ_cᵀ,   δ_c = S_c/n_c

The shift is corrected for exactly when the result is asked for. One matrix product a batch, or less: Q is symmetric.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric

from nc_callbacks.statistics.batches import as_rows, check_range, in_slices
from nc_callbacks.statistics.metric import RecordMetric, sum_over_ranks
from nc_callbacks.statistics.moments import ClassMoments
from nc_callbacks.statistics.precision import full_precision, wide_dtype
from nc_callbacks.statistics.products import add_class_products, add_products, symmetric
from nc_callbacks.statistics.waiting import Noted, Settled, WaitingRows

Covariance = Literal["none", "pooled", "per_class"]

_ROWS = 4096
"""Classes whose means are corrected for at once."""

_PRECISIONS = [
    torch.finfo(dtype).eps
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
]
"""Those that ranks tell each other of."""

_ROWS_PER_CLASS = 64
"""Rows that wait before k matrices are read and written for their products."""


class ClassStatistics(RecordMetric):
    """Class means and covariances of features, streamed.

    Features in float16, bfloat16 or float32 are accumulated in float32, float64 in float64; `compute` does its
    algebra in float64. Each batch costs at most one product of the batch with itself and never waits for a GPU.
    Small batches wait, up to 4,096 rows or 1 MiB (with ``"per_class"`` 64 rows a class), and are added together;
    reading a state adds what waits.

    Args:
        num_classes: k, at least 2.
        num_features: p; by default that of the first batch.
        covariance: ``"none"`` keeps O(kp) numbers (means, traces, coordinate sums), ``"pooled"`` adds Σ_W (p × p),
            ``"per_class"`` adds every C_c (k × p × p).
        ignore_index: Samples with this target are left out.
        shift: Vectors near the class means, (k, p) or (p,), to take the sums around. By default each class takes its
            mean among the first samples that are added together.
        kwargs: Passed to `torchmetrics.Metric`.

    The state `products` holds upper triangles alone.

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

    counts = Settled()
    shift = Settled()
    sums = Settled()
    squares = Settled()
    coordinate_squares = Settled()
    products = Settled()
    nonfinite = Settled()
    invalid = Settled()
    precision = Noted()
    _noted: torch.dtype | None
    _sums: Tensor
    _invalid: Tensor

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
            p = num_features or (shift.shape[-1] if shift.ndim else 0)
            if shift.shape not in ((p,), (num_classes, p)):
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

        self._waiting = WaitingRows()
        self._room: Tensor | None = None

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
        self.add_state("precision", torch.zeros((), dtype=wide), dist_reduce_fx="max")

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
        with full_precision(features.device):
            x, y = as_rows(features, targets, self.num_features or self._sums.shape[1])
            if x.device != self._sums.device or y.device != x.device:
                raise ValueError(
                    f"features, targets and statistics must be on one device, got {x.device}, {y.device} and "
                    f"{self._sums.device}: move the statistics with .to(...)."
                )
            if x.device.type == "cpu":
                if self.ignore_index is not None:
                    keep = y != self.ignore_index
                    x, y = x[keep], y[keep]
                check_range(y, self.num_classes)
            else:
                y = self._in_range(y)
            self._accommodate(x)
            if self._noted != x.dtype and x.shape[0]:
                self._note(x.dtype)
            # Not len(x), which takes Python a microsecond.
            rows = x.shape[0]
            if not rows:
                return
            room = self._waiting.room(self._sums, self._least_rows)
            if self._waiting.count + rows > room:
                self.settle()
            if rows < room:
                self._waiting.add(x, y, room, self._sums.dtype)
            else:
                self._make_states_mutable()
                for part in in_slices(x, y):
                    self._add(*part)

    def _note(self, dtype: torch.dtype) -> None:
        self.precision = self.precision.clamp(min=torch.finfo(dtype).eps)
        self._noted = dtype

    def settle(self) -> None:
        """Add the rows that wait to the states; reading a state does it."""
        if self._waiting.count:
            with full_precision(self._sums.device):
                x, y = self._waiting.take()
                self._make_states_mutable()
                self._add(x, y)

    def _add(self, x: Tensor, y: Tensor) -> None:
        x = x.to(self.sums.dtype)
        ones, ignored = torch.ones_like(y), None
        if self.ignore_index is not None and x.device.type != "cpu":
            ignored = y == self.num_classes
            y, ones = y.masked_fill(ignored, 0), (~ignored).long()
        if not self.shift_is_given:
            self._set_shift_of_new_classes(x, y, ones)
        d = torch.index_select(self.shift, 0, y, out=self._room_for(x))
        torch.sub(x, d, out=d)
        if ignored is not None:
            d.masked_fill_(ignored[:, None], 0)

        wide = self.squares.dtype
        norms = torch.linalg.vector_norm(d, dim=1).square_().to(wide)
        self.counts.index_add_(0, y, ones)
        self.sums.index_add_(0, y, d)
        self.squares.index_add_(0, y, norms)
        self.coordinate_squares.index_add_(0, y, d.sum(1).to(wide).square_())
        # On the CPU asking costs nothing; elsewhere it would wait for the device.
        if y.device.type != "cpu" or not math.isfinite(norms.sum()):
            self.nonfinite += (~norms.isfinite()).sum()
        if self.covariance == "pooled":
            add_products(self.products, d)
        elif self.covariance == "per_class":
            add_class_products(self.products, d, y)

    def _room_for(self, x: Tensor) -> Tensor:
        """Memory for a tensor like `x`; on a CPU always the same, for fresh pages cost more than the sums."""
        if x.device.type != "cpu":
            return torch.empty_like(x)
        room = self._room
        if room is None or room.dtype != x.dtype or room.shape[1] != x.shape[1] or len(room) < len(x):
            room = self._room = x.new_empty(x.shape)
        return room[: len(x)]

    def __getstate__(self) -> dict[str, Any]:
        self.settle()
        return {**super().__getstate__(), "_waiting": WaitingRows(), "_room": None}

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
        total, present = n.sum(), self.counts > 0
        divisor = torch.where(present, n, torch.nan)
        # Where there are many classes every further (k, p) matrix counts: this one becomes the means.
        delta = self.sums.to(wide) if self.sums.dtype != wide else self.sums.clone()
        delta /= n.clamp(min=1)[:, None]
        traces = (self.squares.to(wide) / divisor - torch.linalg.vector_norm(delta, dim=1).square()).clamp(min=0)
        coordinate_sums = (self.coordinate_squares.to(wide) / divisor - delta.sum(1).square()).clamp(min=0)
        within = covariances = None
        if self.covariance == "pooled":
            scatter = self.products.to(wide, copy=True)
            for some, counts in zip(delta.split(_ROWS), n.split(_ROWS), strict=True):
                scatter -= (counts[:, None] * some).T @ some
            within = symmetric(scatter) / total
        elif self.covariance == "per_class":
            covariances = self.products.to(wide) / divisor[:, None, None]
            for covariance, mean in zip(covariances, delta, strict=True):
                covariance.addr_(mean, mean, alpha=-1)
            covariances = symmetric(covariances)
            within = torch.einsum("c,cpq->pq", n[present] / total, covariances[present])
        means = delta.add_(self.shift).masked_fill_(~present[:, None], torch.nan)
        return ClassMoments(
            counts=self.counts.clone(),
            means=means,
            traces=traces,
            coordinate_sums=coordinate_sums,
            within=within,
            covariances=covariances,
            nonfinite=int(self.nonfinite),
            precision=float(self.precision),
        )

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the samples of another `ClassStatistics` (or its `metric_state`) to this one.

        Raises:
            ValueError: The other is no `ClassStatistics` with the same classes, features and covariance.
        """
        state = incoming_state.metric_state if isinstance(incoming_state, ClassStatistics) else incoming_state
        if not isinstance(state, dict) or {*state, "precision"} != self._defaults.keys():
            raise ValueError(f"Expected a ClassStatistics or its metric_state, got {type(incoming_state).__name__}.")
        theirs = cast(dict[str, Tensor], state)
        theirs = {"precision": _own_precision(theirs["sums"]), **theirs}
        if not int(theirs["counts"].sum()):
            return
        with full_precision(self.sums.device):
            self._make_states_mutable()
            self._accommodate(theirs["sums"])
            mine = cast(dict[str, Tensor], self.metric_state)
            theirs |= {name: theirs[name].to(mine[name].dtype) for name in ("shift", "sums", "products")}
            for name in ("sums", "products"):
                if mine[name].shape != theirs[name].shape:
                    raise ValueError(
                        f"Cannot merge statistics whose {name} have shapes {tuple(mine[name].shape)} and "
                        f"{tuple(theirs[name].shape)}: classes, features and covariance must be the same."
                    )
            shift = torch.where((self.counts > 0)[:, None], mine["shift"], theirs["shift"])
            mine, theirs = _rebased(mine, shift), _rebased(theirs, shift)
            theirs["shift"] = torch.zeros_like(shift)
            for name in self._defaults:
                combine = torch.maximum if name == "precision" else torch.add
                setattr(self, name, combine(mine[name], theirs[name]))
        self._update_count += 1
        self._computed = None

    def _sync_dist(self, dist_sync_fn: Callable | None = None, process_group: Any | None = None) -> None:
        """Sum the states of all ranks, after agreeing on one shift: the bytes do not depend on the number of ranks."""
        group = process_group or self.process_group
        state = cast(dict[str, Tensor], self.metric_state)
        p, dtype = state["sums"].shape[1], state["sums"].dtype
        # A rank that has seen no sample knows neither p nor the precision yet.
        layout = torch.tensor([p > 0, p, p * p, dtype == torch.float64], device=self._sums.device)
        # How many ranks are as coarse as each: the sum tells the maximum.
        precisions = torch.tensor(_PRECISIONS).to(state["precision"])
        as_coarse = (state["precision"] >= precisions).long()
        exact = [state["counts"], state["nonfinite"], state["invalid"], layout, as_coarse]
        counts, nonfinite, invalid, layout, as_coarse = sum_over_ranks(exact, group)
        knowing, features, squares, wide = layout.tolist()
        # By Cauchy and Schwarz: equal where all are, and then no rank goes on alone.
        if features**2 != knowing * squares:
            raise ValueError(f"All ranks must have as many features a sample, got {p} here and others elsewhere.")
        features = features // max(knowing, 1)
        dtype = torch.float64 if wide else torch.float32
        self._accommodate(torch.zeros(0, features, dtype=dtype, device=self._sums.device))

        state = cast(dict[str, Tensor], self.metric_state)
        if not self.shift_is_given:
            centre = state["counts"][:, None] * state["shift"] + state["sums"]
            dist.all_reduce(centre, group=group)
            with full_precision(centre.device):
                state = _rebased(state, centre / counts[:, None].clamp(min=1))
        names = ["sums", "squares", "coordinate_squares", "products"]
        for name, total in zip(names, sum_over_ranks([state[name].to(dtype) for name in names], group), strict=True):
            setattr(self, name, total.to(state[name].dtype))
        self.shift = state["shift"]
        self.counts, self.nonfinite, self.invalid = counts, nonfinite, invalid
        self.precision = precisions.where(as_coarse > 0, 0).amax()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        # Saved before precision was a state.
        if f"{prefix}sums" in state_dict and bool(state_dict[f"{prefix}counts"].any()):
            state_dict.setdefault(f"{prefix}precision", _own_precision(state_dict[f"{prefix}sums"]))
        super()._load_from_state_dict(state_dict, prefix, *others)

    @property
    def _least_rows(self) -> int:
        """Rows that may wait whatever they take: no more memory than the products."""
        p = self._sums.shape[1]
        return self.num_classes * min(_ROWS_PER_CLASS, p) if self.covariance == "per_class" else 1

    def _products_shape(self, p: int) -> tuple[int, ...]:
        return {"none": (0,), "pooled": (p, p), "per_class": (self.num_classes, p, p)}[self.covariance]

    def _accommodate(self, x: Tensor) -> None:
        """Size the states for the first batch, and widen them when float64 features come."""
        if not self._sums.shape[1] and x.shape[1]:
            p = x.shape[1]
            self.shift, self.sums = self.shift.new_zeros(self.num_classes, p), self.sums.new_zeros(self.num_classes, p)
            self.products = self.products.new_zeros(self._products_shape(p))
        if x.dtype == torch.float64 and self._sums.dtype != torch.float64:
            self.shift, self.sums, self.products = self.shift.double(), self.sums.double(), self.products.double()

    def _in_range(self, y: Tensor) -> Tensor:
        """Targets on a device in 0…k−1, and k for those to ignore; how many were out of range is added up."""
        wrong, ignored = (y < 0) | (y >= self.num_classes), None
        if self.ignore_index is not None:
            ignored = y == self.ignore_index
            wrong &= ~ignored
        # Not in place: the state may have been made in inference mode.
        self._invalid = self._invalid + wrong.sum()
        y = y.clamp(0, self.num_classes - 1)
        return y if ignored is None else y.masked_fill_(ignored, self.num_classes)

    def _set_shift_of_new_classes(self, x: Tensor, y: Tensor, ones: Tensor) -> None:
        seen = self.counts.index_select(0, y)
        # On the CPU asking costs nothing; elsewhere it would wait for the device, and the work is small.
        if y.device.type == "cpu" and int(seen.amin()):
            return
        # A number that is not finite when squared must not hide in the shift: its sample is counted, the others not.
        counted = ((seen == 0) & (ones > 0))[:, None] & x.square().isfinite()
        self.shift.index_add_(0, y, torch.where(counted, x, 0))
        batch_counts = torch.zeros_like(self.counts).index_add_(0, y, ones)
        divisor = torch.where(self.counts == 0, batch_counts.clamp(min=1), 1).index_select(0, y)
        # Rows of one class are equal, so it is all one which of them is written last.
        self.shift.index_copy_(0, y, self.shift.index_select(0, y) / divisor[:, None])


def _own_precision(tensor: Tensor) -> Tensor:
    return torch.tensor(torch.finfo(tensor.dtype).eps, dtype=wide_dtype(tensor.device), device=tensor.device)


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
