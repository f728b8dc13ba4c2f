"""Class sums of all ranks: what they agree on first, and the sums."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nc_callbacks.statistics.metric import sum_over_ranks
from nc_callbacks.statistics.sums import moved_products, moved_rows, total

_PRECISIONS = [
    torch.finfo(dtype).eps
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
]
"""Those that ranks tell each other of."""


def summed_counts(state: dict[str, Tensor], group: Any) -> tuple[dict[str, Tensor], int, bool]:
    """Counts and the coarsest precision over ranks, the number of features, and whether any rank needs float64.

    Raises:
        ValueError: Ranks differ in their number of features.
    """
    p, precision = state["sums"].shape[1], state["precision"]
    wide = state["sums"].dtype == torch.float64 or any(state[f"earlier_{n}"].numel() for n in ("sums", "products"))
    # A rank that has seen no sample knows neither p nor the precision yet.
    layout = torch.tensor([p > 0, p, p * p, wide], device=precision.device)
    # The number of ranks that are as coarse as each tells the maximum.
    precisions = torch.tensor(_PRECISIONS).to(precision)
    as_coarse = (precision >= precisions).long()
    names = ("counts", "nonfinite", "invalid")
    *exact, layout, as_coarse = sum_over_ranks([*(state[name] for name in names), layout, as_coarse], group)
    knowing, features, squares, wide = layout.tolist()
    # By Cauchy and Schwarz: equal where all are, and then no rank goes on alone.
    if features**2 != knowing * squares:
        raise ValueError(f"All ranks must have as many features a sample, got {p} here and others elsewhere.")
    coarsest = precisions.where(as_coarse > 0, 0).amax()
    return {**dict(zip(names, exact, strict=True)), "precision": coarsest}, features // max(knowing, 1), wide > 0


def summed_sums(state: dict[str, Tensor], counts: Tensor, one_shift: bool, group: Any) -> dict[str, Tensor]:
    """The sums over ranks around one shift: that which all have, or the mean of all ranks' samples."""
    parts = {name: state[name] for name in ("sums", "squares", "coordinate_squares", "products")}
    flat = state["sums"].new_zeros(sum(part.numel() for part in parts.values()))
    places = flat.split([part.numel() for part in parts.values()])
    mine = {name: place.view_as(part) for (name, part), place in zip(parts.items(), places, strict=True)}
    shift = state["shift"]
    if one_shift:
        for name, part in parts.items():
            mine[name].copy_(part)
    else:
        shift = state["counts"][:, None] * shift + total(state, "sums", slice(None)).to(shift.dtype)
        dist.all_reduce(shift, group=group)
        shift /= counts[:, None].clamp(min=1)
        _move_to(shift, state, mine)
    dist.all_reduce(flat, group=group)
    wide = state["squares"].dtype
    narrow = {name: mine[name].to(wide) for name in ("squares", "coordinate_squares")}
    return {**mine, **narrow, "shift": shift}


def _move_to(shift: Tensor, state: dict[str, Tensor], mine: dict[str, Tensor]) -> None:
    classes = torch.arange(len(shift), device=shift.device)
    gap = torch.where((state["counts"] > 0)[:, None], state["shift"].to(state["squares"].dtype) - shift, 0)
    for name, rows in moved_rows(state, classes, gap).items():
        mine[name].copy_(rows)
    for place, value in moved_products(state, classes, gap):
        mine["products"][place] = value.to(shift.dtype)
