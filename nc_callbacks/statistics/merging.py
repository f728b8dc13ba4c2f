"""Which states of class sums fit together, and why others do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nc_callbacks.statistics.precision import wide_dtype


def completed(state: dict[str, Any]) -> dict[str, Any]:
    """A state with what earlier versions did not save."""
    sums = state.get("sums")
    if not isinstance(sums, Tensor) or not sums.is_floating_point():
        return state
    epsilon = torch.tensor(torch.finfo(sums.dtype).eps, dtype=wide_dtype(sums.device), device=sums.device)
    return {"precision": epsilon, "earlier_sums": sums.new_zeros(0), "earlier_products": sums.new_zeros(0), **state}


def fitting(
    theirs: Any, mine: dict[str, Tensor], products_shape: Callable[[int], tuple[int, ...]]
) -> dict[str, Tensor]:
    """The other state, complete, if it is one of the same classes, features and covariance.

    Raises:
        ValueError: It is of another kind, or of other classes, features or covariance, or on another device.
    """
    if not isinstance(theirs, dict):
        raise ValueError(f"Expected a ClassStatistics or its metric_state, got {type(theirs).__name__}.")
    theirs = completed(theirs)
    if missing := sorted(mine.keys() - theirs.keys()) or sorted(map(str, theirs.keys() - mine.keys())):
        what = "lacks" if mine.keys() - theirs.keys() else "has also"
        raise ValueError(f"Expected a ClassStatistics or its metric_state, got a state that {what} {missing}.")
    for name, tensor in theirs.items():
        if not isinstance(tensor, Tensor) or tensor.is_floating_point() != mine[name].is_floating_point():
            found = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"Cannot merge a state whose {name} are {found}; expected {mine[name].dtype}.")
        if tensor.device != mine[name].device:
            raise ValueError(f"Cannot merge a state on {tensor.device} into one on {mine[name].device}: move it first.")
    for name, shapes in _fitting_shapes(theirs, mine, products_shape).items():
        if theirs[name].shape not in shapes:
            raise ValueError(
                f"Cannot merge statistics whose {name} have shapes {shapes[0]} and {tuple(theirs[name].shape)}: "
                "classes, features and covariance must be the same."
            )
    return theirs


def _fitting_shapes(
    theirs: dict[str, Tensor], mine: dict[str, Tensor], products_shape: Callable[[int], tuple[int, ...]]
) -> dict[str, list[tuple[int, ...]]]:
    k, p = mine["sums"].shape
    # Either may have seen no sample yet, and then has no features.
    if theirs["sums"].ndim == 2 and (not p or not theirs["sums"].shape[1]):
        p = theirs["sums"].shape[1]
    rows, products = (k, p), products_shape(p)
    return {
        "sums": [rows],
        "products": [products],
        "shift": [rows],
        "earlier_sums": [rows, (0,)],
        "earlier_products": [products, (0,)],
        **{name: [(k,)] for name in ("counts", "squares", "coordinate_squares")},
        **{name: [()] for name in ("nonfinite", "invalid", "precision")},
    }
