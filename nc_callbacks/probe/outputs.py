"""What a model returns, and where the rows of a module's output are in it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from itertools import permutations
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

_DEPTH = 4
"""How deep tensors are looked for in what a model returns."""

_PAIRS = 2**24
"""Pairs of rows that are compared at most where some rows are selected."""

_ROWS, _NUMBERS = 256, 20
"""Rows that are compared in later runs, and numbers below which nothing is."""

_FREEDOM = 3
"""Numbers left, after a scale is fitted, that must agree."""


def tensors_of(output: Any) -> dict[str, Tensor]:
    """Floating tensors in what a model returned, however nested, by their place; those named ``logits`` first."""
    found = {place: tensor for place, tensor in _walk(output, "", _DEPTH) if tensor.is_floating_point()}
    return dict(sorted(found.items(), key=lambda item: not _is_logits(item[0])))


def logits_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the tensors named ``logits``, where there are any; else all."""
    return {place: tensor for place, tensor in tensors.items() if _is_logits(place)} or dict(tensors)


def _is_logits(place: str) -> bool:
    return place.rpartition(".")[2] == "logits"


def _walk(output: Any, place: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    if isinstance(output, Tensor):
        yield place, output
    elif depth and not isinstance(output, str | bytes):
        for key, part in _parts(output):
            yield from _walk(part, f"{place}.{key}".lstrip("."), depth - 1)


def _parts(output: Any) -> list[tuple[Any, Any]]:
    if isinstance(output, Mapping):
        return list(output.items())
    if hasattr(output, "_asdict"):
        return list(output._asdict().items())
    if isinstance(output, Sequence):
        return list(enumerate(output))
    if is_dataclass(output) and not isinstance(output, type):
        return [(field.name, getattr(output, field.name)) for field in fields(output)]
    return list(vars(output).items()) if hasattr(output, "__dict__") else []


@dataclass(frozen=True)
class Found:
    """Where the rows of a module's output are in a tensor that the model returned."""

    place: str
    """Of that tensor; see `tensors_of`."""
    positions: tuple[int, ...]
    """Shape of that tensor without its classes."""
    order: tuple[int, ...] | None
    """Dimensions of the module's positions in the order in which the tensor has them; None where a part is selected."""
    rows: Tensor | None = None
    """Number of the module's row that each row of the tensor is, where a part is selected."""
    scale: float = 1.0
    """What the module's numbers are multiplied by; NaN where they go through another increasing function."""


def find_rows(given: Float[Tensor, "*positions k"], returned: Mapping[str, Tensor]) -> Found | None:
    """Where the rows that a module gave are among the tensors that the model returned.

    As they are, times a positive number, behind a softmax, log-softmax or sigmoid, or behind any increasing function of
    each number; in the module's order, with dimensions of positions exchanged, or a part of them.

    Args:
        given: The module's output, classes last.
        returned: See `tensors_of`.
    """
    k = given.shape[-1]
    for place, tensor in returned.items():
        for rows in _with_classes_last(tensor, k):
            order = _order(given, rows)
            if order is not None:
                exchanged = given.permute(*order, given.ndim - 1)
                scale = _relation(exchanged.flatten(0, -2), rows.flatten(0, -2))
                return Found(place, tuple(rows.shape[:-1]), order, scale=1.0 if scale is None else scale)
            if (selected := _selected(given, rows)) is not None:
                return Found(place, tuple(rows.shape[:-1]), None, selected)
    return None


def relation_now(found: Found, given: Float[Tensor, "*positions k"], returned: Mapping[str, Tensor]) -> float | None:
    """What a module's rows are multiplied by in a later run, see `Found.scale`; None where the model returns others.

    Where that cannot be told (few or infinite numbers, probabilities that have come to 0 or 1) it is as it was found.

    Args:
        found: Where they were.
        given: The module's output, classes last.
        returned: See `tensors_of`.
    """
    enough = given.numel() >= _NUMBERS and bool(given.isfinite().all())
    if not enough or (found.order is not None and len(found.order) != given.ndim - 1):
        return found.scale
    candidates = _with_classes_last(returned[found.place], given.shape[-1]) if found.place in returned else []
    for rows in candidates:
        flat = rows.flatten(0, -2)
        if found.order is None and _selected(given, flat[:_ROWS]) is not None:
            return found.scale
        if found.order is not None:
            exchanged = given.permute(*found.order, given.ndim - 1).flatten(0, -2)
            scale = _relation(exchanged[:_ROWS], flat[:_ROWS]) if exchanged.shape == flat.shape else None
            if (scale is None or math.isnan(scale)) and _saturated(flat[:_ROWS]):
                return found.scale
            if scale is not None:
                return scale
    return None


def _saturated(rows: Tensor) -> bool:
    """Whether they may be probabilities of which logits are no longer known."""
    least, most = float(rows.min()), float(rows.max())
    return least >= 0 and most <= 1 and (least == 0 or most > 1 - 1e-3)


def _with_classes_last(tensor: Tensor, k: int) -> list[Tensor]:
    """A tensor as rows of k: its last dimension, or the second as cross-entropy takes it, or a single row."""
    if tensor.ndim == 1:
        return [tensor[None]] if len(tensor) == k else []
    # (n, k, 1, 1) has one row per sample.
    seconds = tensor.ndim > 2 and tensor.shape[1] == k
    flat = seconds and all(size == 1 for size in tensor.shape[2:])
    last = [tensor] if tensor.shape[-1] == k and not flat else []
    return last + ([tensor.flatten(1) if flat else tensor.movedim(1, -1)] if seconds else [])


def _order(given: Tensor, returned: Tensor) -> tuple[int, ...] | None:
    """The exchange of dimensions that makes the given rows the returned ones."""
    if given.numel() != returned.numel():
        return None
    dims = given.ndim - 1
    for order in permutations(range(dims)) if dims <= 4 else [tuple(range(dims))]:
        exchanged = given.permute(*order, dims)
        same_shape = exchanged.shape == returned.shape
        # Rows that keep their order may be given another shape; exchanged ones must have it.
        if (same_shape or order == tuple(range(dims))) and _agree(exchanged.flatten(0, -2), returned.flatten(0, -2)):
            return order
    return None


def _agree(given: Float[Tensor, "n k"], returned: Float[Tensor, "n k"]) -> bool:
    """Whether the returned rows say the same as the given ones."""
    return _relation(given, returned) is not None


def _relation(given: Float[Tensor, "n k"], returned: Float[Tensor, "n k"]) -> float | None:
    """What the given rows are multiplied by, see `Found.scale`; None where they are others."""
    tolerance = max(_tolerance(given), _tolerance(returned))
    r, t = _wide(given), _wide(returned)
    if not (bool(r.isfinite().all()) and bool(t.isfinite().all())):
        return None
    forms = [(r, t), (_centred(r), _centred(t))]
    if bool((t > 0).all()):
        forms.append((_centred(r), _centred(t.log())))
    if bool(((t > 0) & (t < 1)).all()):
        forms.append((r, t.logit()))
    if any(_close(wanted, got, 1.0, tolerance) for wanted, got in forms):
        return 1.0
    n, k = r.shape
    if n * (k - 1) - 1 < _FREEDOM:
        return None
    for wanted, got in forms:
        scale = float((wanted * got).sum() / (wanted * wanted).sum().clamp_min(torch.finfo(wanted.dtype).tiny))
        if _close(wanted, got, scale, tolerance):
            return scale
    return math.nan if _increasing(r, t, tolerance) else None


def _close(wanted: Tensor, got: Tensor, scale: float, tolerance: float) -> bool:
    """Whether one is the other, times a positive number."""
    return scale > 0 and float((got - scale * wanted).norm()) <= tolerance * float(got.norm())


def _increasing(r: Tensor, t: Tensor, tolerance: float) -> bool:
    """Whether each number is the same increasing function of the given one."""
    if r.numel() < _NUMBERS:
        return False
    sorted_t = t.flatten()[r.flatten().argsort()]
    spread = float(sorted_t[-1] - sorted_t[0])
    return spread > 0 and float(sorted_t.diff().min()) >= -tolerance * spread


def _selected(given: Tensor, returned: Tensor) -> Tensor | None:
    """Which of the given rows the returned ones are, where they are fewer."""
    r, t = _wide(given).flatten(0, -2), _wide(returned).flatten(0, -2)
    if not 0 < len(t) < len(r) or len(r) * len(t) > _PAIRS:
        return None
    distances, rows = torch.cdist(t, r, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    tolerance = max(_tolerance(given), _tolerance(returned)) * t.norm(dim=1)
    return rows if bool((distances <= tolerance).all()) else None


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(1, keepdim=True)


def _wide(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def _tolerance(tensor: Tensor) -> float:
    return 3e-2 if tensor.element_size() < 4 else 1e-3
