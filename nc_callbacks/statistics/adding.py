"""Rows as they are added to the sums of class statistics."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from nc_callbacks.statistics import two_parts
from nc_callbacks.statistics.batches import check_range, in_slices
from nc_callbacks.statistics.pending import PendingRows
from nc_callbacks.statistics.precision import full_precision
from nc_callbacks.statistics.products import add_class_products, add_products
from nc_callbacks.statistics.seen import AllSeen
from nc_callbacks.statistics.shifts import add_centres, centres, shall_move
from nc_callbacks.statistics.spread import Spread
from nc_callbacks.statistics.states import ClassSums, Covariance
from nc_callbacks.statistics.sums import more_products, moved_products, moved_rows, total
from nc_callbacks.statistics.threads import one_thread

_ROWS_PER_CLASS = 64
"""Rows that wait before k matrices are read and written for their products."""

_FIRST_ROWS = 2**16
"""Rows at the start of a pass, in which a device looks for outliers before it sets a shift."""


class StreamedSums(ClassSums):
    """Class sums that rows are added to: in float32 by blocks, or with care, in float64."""

    ignore_index: int | None

    def __init__(
        self, num_classes: int, num_features: int | None, covariance: Covariance, shift: Tensor | None, **kwargs: Any
    ) -> None:
        self._pending = PendingRows()
        self._room: Tensor | None = None
        super().__init__(num_classes, num_features, covariance, shift, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        self.settle()
        return {**super().__getstate__(), "_pending": PendingRows(), "_room": None, "_all_seen": AllSeen()}

    def settle(self) -> None:
        """Add the rows that wait to the states; reading a state does it."""
        if self._pending.count:
            with full_precision(self._sums.device):
                x, y = self._pending.take()
                self._make_states_mutable()
                self._add(x, y)

    def _counted(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The rows that count; on a device all, whose targets are looked at together with those of other batches."""
        if x.device.type != "cpu":
            return x, y
        if self.ignore_index is not None:
            keep = y != self.ignore_index
            x, y = x[keep], y[keep]
        check_range(y, self.num_classes)
        return x, y

    def _in_range(self, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """Targets on a device in 0…k−1, and which are to be ignored; those out of range are counted."""
        wrong, ignored = (y < 0) | (y >= self.num_classes), None
        if self.ignore_index is not None:
            ignored = y == self.ignore_index
            wrong &= ~ignored
        # Not in place: the state may have been made in inference mode.
        self._invalid = self._invalid + wrong.sum()
        y = y.clamp(0, self.num_classes - 1)
        return y if ignored is None else y.masked_fill_(ignored, 0), ignored

    def _take(self, x: Tensor, y: Tensor) -> None:
        """Add rows, or let them wait."""
        if self._noted != x.dtype:
            self._note(x.dtype)
        rows, room = x.shape[0], self._pending.room(self._sums, self._least_rows)
        if self._pending.count + rows > room:
            self.settle()
        if rows < room:
            with one_thread(x.device):
                self._pending.add(x, y, room, self._sums.dtype)
        else:
            self._make_states_mutable()
            for part in in_slices(x, y):
                self._add(*part)

    @property
    def _least_rows(self) -> int:
        """Rows that may wait whatever they take: no more memory than the products."""
        p = self._sums.shape[1]
        return self.num_classes * min(_ROWS_PER_CLASS, p) if self.covariance == "per_class" else 1

    def _add(self, x: Tensor, y: Tensor) -> None:
        ignored = None
        if x.device.type != "cpu":
            y, ignored = self._in_range(y)
        with one_thread(x.device):
            d = self._add_rows(x.to(self.sums.dtype), y, ignored)
        if d is None:
            self._add_with_care(x, y)
        elif self.covariance == "pooled":
            add_products(self.products, d)
        elif self.covariance == "per_class":
            add_class_products(self.products, d, y)
        self._count_rows(x.shape[0])

    def _add_rows(self, x: Tensor, y: Tensor, ignored: Tensor | None) -> Tensor | None:
        """Add all but the products, and give the deviations that these are made of; None where they are far."""
        ones = torch.ones_like(y) if ignored is None else (~ignored).long()
        if not self.shift_is_given:
            self._set_shift_of_new_classes(x, y, ones)
        d = torch.index_select(self.shift, 0, y, out=self._room_for(x))
        torch.sub(x, d, out=d)
        if ignored is not None:
            d.masked_fill_(ignored[:, None], 0)
        norms = torch.linalg.vector_norm(d, dim=1).square_().to(self.squares.dtype)
        if self._is_far(norms):
            return None
        self.counts.index_add_(0, y, ones)
        self.sums.index_add_(0, y, d)
        self.squares.index_add_(0, y, norms)
        self.coordinate_squares.index_add_(0, y, d.sum(1).to(norms.dtype).square_())
        self._all_seen.ask(self.counts)
        return d

    def _is_far(self, norms: Tensor) -> bool:
        """Whether rows with these squared distances from their shifts would cost the others their digits.

        Asked on a CPU alone, where it costs nothing: elsewhere it would wait for the device. So does the number of
        rows that are not finite.
        """
        added = float(norms.sum()) if norms.device.type == "cpu" else math.nan
        if not math.isfinite(added):
            self.nonfinite += (~norms.isfinite()).sum()
            return False
        return self._known_spread().is_far(added, float(norms.amax()), len(norms))

    def _known_spread(self) -> Spread:
        if self._spread is None:
            self._spread = Spread.of(self.counts, self.squares)
        return self._spread

    def _add_with_care(self, x: Tensor, y: Tensor) -> None:
        """Add rows in float64, where float32 would not hold those far away and the others; move shifts that are far."""
        self._open("sums", "products")
        spread = self._known_spread()
        classes, places = y.unique(return_inverse=True)
        x = x.to(self.squares.dtype)
        own = None if self.shift_is_given else self._follow(x, places, classes)
        d = x - self.shift.index_select(0, y)
        norms = d.square().sum(1)
        self.counts.index_add_(0, y, torch.ones_like(y))
        self.squares.index_add_(0, y, norms)
        self.coordinate_squares.index_add_(0, y, d.sum(1).square_())
        sums = total(self._state, "sums", classes).index_add_(0, places, d)
        two_parts.store(self.sums, self.earlier_sums, classes, sums)
        self._set_products(more_products(self._state, d, y))
        self._spread = spread.after_care(self.counts, self.squares, norms if own is None else own, len(classes))

    def _follow(self, x: Tensor, places: Tensor, classes: Tensor) -> Tensor:
        """Move shifts to where the rows are; the squared distances of rows from the middle of those of their class."""
        old = self.shift[classes]
        new = centres(x, places, len(classes)).to(old.dtype)
        before, after = ((x - middle[places]).square().sum(1) for middle in (old, new))
        move = shall_move(self._state, classes, places, old.to(x.dtype) - new, before, after)
        self._move_shift(classes[move], new[move])
        return after

    def _room_for(self, x: Tensor) -> Tensor:
        """Memory for a tensor like `x`; on a CPU always the same, for fresh pages cost more than the sums."""
        if x.device.type != "cpu":
            return torch.empty_like(x)
        room = self._room
        if room is None or room.dtype != x.dtype or room.shape[1] != x.shape[1] or len(room) < len(x):
            room = self._room = x.new_empty(x.shape)
        return room[: len(x)]

    def _set_shift_of_new_classes(self, x: Tensor, y: Tensor, ones: Tensor) -> None:
        if self._all_seen.is_known():
            return
        seen = self.counts.index_select(0, y)
        # On the CPU asking costs nothing; elsewhere it would wait for the device, and the work is small.
        if y.device.type == "cpu" and int(seen.amin()):
            return
        # Where rows are looked at one by one afterwards, the mean is enough.
        new = (seen == 0) & (ones > 0)
        if y.device.type == "cpu":
            self._known_spread().samples -= len(y[new].unique())
            add_centres(self.shift, x, y, new, rounds=0)
        else:
            add_centres(self.shift, x, y, new, **({} if self._rows.count < _FIRST_ROWS else {"rounds": 0}))

    def _merge(self, theirs: dict[str, Tensor]) -> None:
        """Add the sums of a state; one that has seen no sample may have no features yet."""
        if theirs["sums"].shape[1]:
            self._merge_sums(theirs)
        for name in ("counts", "nonfinite", "invalid"):
            setattr(self, name, getattr(self, name) + theirs[name])
        self.precision = torch.maximum(self.precision, theirs["precision"])

    def _merge_sums(self, theirs: dict[str, Tensor]) -> None:
        """Add sums around the shifts of this one, and for the classes that it has not seen around the other's."""
        own, new = self.counts > 0, theirs["counts"] > 0
        wide = self.squares.dtype
        if not self.shift_is_given:
            self.shift = torch.where((new & ~own)[:, None], theirs["shift"].to(self.shift.dtype), self.shift)
        gap = torch.where(new[:, None], theirs["shift"].to(wide) - self.shift.to(wide), 0)
        classes = torch.arange(len(gap), device=gap.device)
        rows = int(self.counts.sum() + theirs["counts"].sum())
        self._open(*(n for n in ("sums", "products") if theirs[f"earlier_{n}"].numel() or rows >= self._rows.limits[n]))
        state, moved = self._state, moved_rows(theirs, classes, gap)
        products = moved_products(theirs, classes, gap)
        self._set_products((place, value.add_(total(state, "products", place))) for place, value in products)
        two_parts.store(self.sums, self.earlier_sums, classes, moved["sums"].add_(total(state, "sums", classes)))
        for name in ("squares", "coordinate_squares"):
            setattr(self, name, state[name] + moved[name])
