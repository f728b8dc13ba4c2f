"""The sums of class statistics as states of a metric: their sizes and precision, their blocks, and their shifts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nc_callbacks.statistics import two_parts
from nc_callbacks.statistics.exchange import summed_counts, summed_sums
from nc_callbacks.statistics.merging import completed
from nc_callbacks.statistics.metric import RecordMetric
from nc_callbacks.statistics.precision import full_precision, wide_dtype
from nc_callbacks.statistics.seen import AllSeen
from nc_callbacks.statistics.shifts import drifted
from nc_callbacks.statistics.spread import Spread
from nc_callbacks.statistics.sums import Place, moved_products, moved_rows, total

Covariance = Literal["none", "pooled", "per_class"]

_BLOCK_ROWS = 2**15
"""Rows that are summed in one block."""

_BLOCK_ROWS_PER_CLASS = 64
"""And for each class, so that ending a block costs little beside its rows."""

_FIRST_LOOK = 1024
_FIRST_LOOK_PER_CLASS = 16
"""Rows, and for each class, after which the shifts are looked at."""


class Rows:
    """Counts rows as they are added: all, and those in the present block of each sum.

    Args:
        limits: The rows of a full block, by the sum's name.
        first_look: The rows after which the shifts are looked at; from then on whenever they have doubled.
    """

    def __init__(self, limits: dict[str, int], first_look: int) -> None:
        self.count = 0
        self.limits = limits
        self._in_block = dict.fromkeys(limits, 0)
        self._next_look = first_look

    def ended_blocks(self, rows: int) -> list[str]:
        """Count rows that were added; the sums whose block is full with them."""
        self.count += rows
        self._in_block = {name: count + rows for name, count in self._in_block.items()}
        ended = [name for name, count in self._in_block.items() if count >= self.limits[name]]
        self._in_block |= dict.fromkeys(ended, 0)
        return ended

    def look_is_due(self) -> bool:
        """Whether there are twice as many rows as at the last look."""
        if self.count < self._next_look:
            return False
        self._next_look = 2 * self.count
        return True


class Settled:
    """A state of a metric that holds the rows that wait whenever it is read or replaced."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = f"_{name}"

    def __get__(self, metric: Any, owner: type | None = None) -> Tensor:
        metric.settle()
        return metric.__dict__[self.name]

    def __set__(self, metric: Any, value: Tensor) -> None:
        metric.settle()
        metric.__dict__[self.name] = value
        # What was known of the sums holds no longer.
        metric.__dict__["_spread"] = None
        if self.name == "_counts":
            metric.__dict__["_all_seen"] = AllSeen()


class Noted:
    """The coarsest precision of the features so far, a state of a metric.

    The type that was noted last is remembered, so that further batches of it cost nothing.
    """

    def __get__(self, metric: Any, owner: type | None = None) -> Tensor:
        return metric.__dict__["_precision"]

    def __set__(self, metric: Any, value: Tensor) -> None:
        metric.__dict__["_precision"] = value
        metric.__dict__["_noted"] = None


class ClassSums(RecordMetric):
    """Sums of deviations from class shifts, in two parts where they are long (see `two_parts`)."""

    counts = Settled()
    shift = Settled()
    sums = Settled()
    earlier_sums = Settled()
    squares = Settled()
    coordinate_squares = Settled()
    products = Settled()
    earlier_products = Settled()
    nonfinite = Settled()
    invalid = Settled()
    precision = Noted()
    _noted: torch.dtype | None
    _sums: Tensor
    _invalid: Tensor
    _rows: Rows
    _spread: Spread | None
    _all_seen: AllSeen

    def __init__(
        self, num_classes: int, num_features: int | None, covariance: Covariance, shift: Tensor | None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.num_features = num_features
        self.covariance = covariance
        self.shift_is_given = shift is not None
        self._restart_rows()
        k, p = num_classes, num_features or 0
        wide = wide_dtype(self.device)
        start = torch.zeros(k, p) if shift is None else shift.detach().float().expand(k, p).clone()
        self.add_state("counts", torch.zeros(k, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("shift", start, dist_reduce_fx="mean")
        self.add_state("sums", torch.zeros(k, p), dist_reduce_fx="sum")
        self.add_state("earlier_sums", torch.zeros(0), dist_reduce_fx="sum")
        self.add_state("squares", torch.zeros(k, dtype=wide), dist_reduce_fx="sum")
        self.add_state("coordinate_squares", torch.zeros(k, dtype=wide), dist_reduce_fx="sum")
        self.add_state("products", torch.zeros(self._products_shape(p)), dist_reduce_fx="sum")
        self.add_state("earlier_products", torch.zeros(0), dist_reduce_fx="sum")
        self.add_state("nonfinite", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("invalid", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("precision", torch.zeros((), dtype=wide), dist_reduce_fx="max")

    @property
    def _state(self) -> dict[str, Tensor]:
        return cast(dict[str, Tensor], self.metric_state)

    def _products_shape(self, p: int) -> tuple[int, ...]:
        return {"none": (0,), "pooled": (p, p), "per_class": (self.num_classes, p, p)}[self.covariance]

    def _accommodate(self, x: Tensor) -> None:
        """Size the states for the first batch, and widen them when float64 features come."""
        if not self._sums.shape[1] and x.shape[1]:
            p = x.shape[1]
            self.shift, self.sums = self.shift.new_zeros(self.num_classes, p), self.sums.new_zeros(self.num_classes, p)
            self.products = self.products.new_zeros(self._products_shape(p))
        if x.dtype == torch.float64 and self._sums.dtype != torch.float64:
            self._widen()

    def _widen(self) -> None:
        """Keep the sums in one part, of the wide precision."""
        state = self._state
        for name in ("sums", "products"):
            setattr(self, name, total(state, name, slice(None)))
            setattr(self, f"earlier_{name}", state[f"earlier_{name}"].new_zeros(0))
        self.shift = self.shift.to(state["squares"].dtype)

    def _note(self, dtype: torch.dtype) -> None:
        self.precision = self.precision.clamp(min=torch.finfo(dtype).eps)
        self._noted = dtype

    def reset(self) -> None:
        """Forget all samples."""
        super().reset()
        self._restart_rows()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Add a batch, and give the moments of the batch alone."""
        # In between all samples are forgotten and put back.
        rows = self._rows
        try:
            return super().forward(*args, **kwargs)
        finally:
            self._rows = rows

    def _restart_rows(self) -> None:
        k = self.num_classes
        sums = _BLOCK_ROWS + _BLOCK_ROWS_PER_CLASS * k
        limits = {"sums": sums, "products": _BLOCK_ROWS * (k if self.covariance == "per_class" else 1)}
        # Without asking the device, a look takes a product of all class means.
        on_host = self.device.type == "cpu"
        self._rows = Rows(limits, _FIRST_LOOK + _FIRST_LOOK_PER_CLASS * k if on_host else max(limits.values()))

    def _count_rows(self, rows: int) -> None:
        """End the blocks that are full with these rows; at times, look whether the shifts are still near the means."""
        for name in self._rows.ended_blocks(rows):
            self._open(name)
            if (earlier := getattr(self, f"earlier_{name}")).numel():
                two_parts.end_block(getattr(self, name), earlier)
        if self._rows.look_is_due():
            self._follow_means()

    def _open(self, *names: str) -> None:
        """Have a second part of the sums, unless they are in float64."""
        for name in names:
            block, earlier = getattr(self, name), f"earlier_{name}"
            if block.dtype != torch.float64 and getattr(self, earlier).shape != block.shape:
                setattr(self, earlier, torch.zeros_like(block))

    def _follow_means(self) -> None:
        """Move the shifts that the means of their classes have left."""
        if self.shift_is_given:
            return
        far, means = drifted(self._state)
        if far.device.type == "cpu":
            classes = far.nonzero().squeeze(1)
            self._move_shift(classes, means[classes])
        else:
            # Asking which would wait for the device.
            self._move_shift(torch.arange(len(far), device=far.device), means.where(far[:, None], self.shift))

    def _move_shift(self, classes: Int[Tensor, " m"], new: Float[Tensor, "m p"]) -> None:
        """Take the sums of some classes around other shifts, exactly."""
        if not len(classes):
            return
        self._open("sums", "products")
        state, new = self._state, new.to(self.shift.dtype)
        gap = self.shift[classes].to(self.squares.dtype) - new
        rows = moved_rows(state, classes, gap)
        self._set_products(moved_products(state, classes, gap))
        two_parts.store(self.sums, self.earlier_sums, classes, rows["sums"])
        self.squares[classes], self.coordinate_squares[classes] = rows["squares"], rows["coordinate_squares"]
        self.shift[classes] = new
        if self._spread is not None:
            # What is usual stays so, whatever the shifts.
            self._spread.total = float(self.squares.sum())

    def _set_products(self, parts: Iterable[tuple[Place, Tensor]]) -> None:
        block, earlier = self.products, self.earlier_products
        for place, value in parts:
            two_parts.store(block, earlier, place, value)

    def _sync_dist(self, dist_sync_fn: Callable | None = None, process_group: Any | None = None) -> None:
        """Sum the states of all ranks, after agreeing on one shift: the bytes do not depend on the number of ranks."""
        group = process_group or self.process_group
        with full_precision(self._sums.device):
            exact, features, wide = summed_counts(self._state, group)
            self._accommodate(self._sums.new_zeros(0, features))
            if wide:
                self._widen()
            sums = summed_sums(self._state, exact["counts"], self.shift_is_given, group)
        for name, value in (exact | sums).items():
            setattr(self, name, value)

    def _copy_state_dict(self) -> dict[str, Any]:
        # For `sync` and `forward`, which put other tensors in the place of these: no copies are needed.
        return {**self._state}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        saved = {name: state_dict[prefix + name] for name in self._defaults if prefix + name in state_dict}
        if saved:
            state_dict |= {prefix + name: value for name, value in completed(saved).items()}
        super()._load_from_state_dict(state_dict, prefix, *others)
        self._restart_rows()
