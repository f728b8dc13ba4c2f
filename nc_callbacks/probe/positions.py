"""Whether a module's rows are the targets' positions, in the same order."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nc_callbacks.probe.outputs import Found
from nc_callbacks.probe.targets import class_indices
from nc_callbacks.probe.trial import hook_before

_WAY_OUT = "Pass batch_fn=..., a function from a batch to (inputs, targets), with one target a row"


@dataclass(frozen=True)
class Positions:
    """Where the rows of a head's output are."""

    head: str
    """Its name."""
    rows: Float[Tensor, "*positions k"]
    """Its output on the batch."""
    found: Found | None
    """Where they are in what the model returns, if they are in it."""
    returned: Mapping[str, Tensor]
    """What the model returns."""
    without_one: Callable[[], Tensor]
    """Gives the tensor that they are in, without the last sample of the batch."""

    def order(self, targets: Any, ignore_index: int | None) -> tuple[int, ...]:
        """The dimensions of the positions in the order of the targets'; empty where it is the same.

        Raises:
            ValueError: The positions are not those of the targets, or it cannot be told.
        """
        if not isinstance(targets, Tensor):
            return ()
        own = tuple(self.rows.shape[:-1])
        outside = own if self.found is None else self.found.positions
        y = class_indices(targets, self.rows.shape[-1], sequence=tuple(targets.shape) in (own, outside))
        if self.found is None:
            return self._by_shape(own, tuple(y.shape))
        if self.found.rows is not None:
            self._check_selected(self.found.rows, y, ignore_index)
            return ()
        if len(outside) == 1 and min(y.shape, default=1) > 1 < y.ndim:
            self._check_flat(self.returned[self.found.place], tuple(y.shape))
        assert self.found.order is not None
        return () if self.found.order == tuple(range(len(own))) else self.found.order

    def _by_shape(self, own: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[int, ...]:
        """Where the model does not return the rows, their shape has to say which they are."""
        if len(own) == 1 and len(wanted) < 2:
            return ()
        orders = [order for order in permutations(range(len(own))) if tuple(own[dim] for dim in order) == wanted]
        if len(orders) == 1:
            return orders[0]
        raise ValueError(
            f"It cannot be told which of the rows of head {self.head!r}, at positions of shape {own}, belong to the "
            f"targets of shape {wanted}, for the model does not return them. Pass forward_fn=..., a function (module, "
            "inputs) that returns its output: where the model averages outputs, of features averaged before the head."
        )

    def _check_flat(self, returned: Tensor, wanted: tuple[int, ...]) -> None:
        """Rows without a shape of their own have to be sample after sample, as flattened targets are."""
        less = self.without_one().float()
        first = returned[: len(less)].float()
        near = torch.allclose(less, first, rtol=1e-2, atol=1e-3 * float(first.abs().max()))
        if len(returned) - len(less) == math.prod(wanted[1:]) and near:
            return
        raise ValueError(
            f"The rows of head {self.head!r} do not go through the targets of shape {wanted} sample by sample. "
            f"{_WAY_OUT} in the order of the rows."
        )

    def _check_selected(self, rows: Tensor, y: Tensor, ignore_index: int | None) -> None:
        """Of rows of which the model returns some, the targets have to count no others."""
        flat, total = y.flatten(), self.rows[..., 0].numel()
        counted = torch.ones_like(flat, dtype=torch.bool) if ignore_index is None else flat != ignore_index
        if len(flat) == total and set(counted.nonzero().flatten().tolist()) <= set(rows.tolist()):
            return
        raise ValueError(
            f"The model returns {len(rows)} of the {total} rows that head {self.head!r} gives, and these are not those "
            f"that the targets of shape {tuple(y.shape)} count. {_WAY_OUT} of the head and ignore_index for those that "
            "are not returned; for the last token of a text there is nc_callbacks.batches.last_token."
        )


def sample_dims(
    layers: Mapping[str, nn.Module], shapes: Mapping[str, tuple[int, ...]], forward: Callable[[Any], Any], inputs: Any
) -> dict[str, int]:
    """Which dimension of each layer's input the samples lie in, where it is not the first.

    Where its shape does not say, that is the one which is smaller when the last sample is left out.
    """
    n = size_of(inputs)
    unclear = [name for name, shape in shapes.items() if len(shape) > 1 and (shape[0] != n or n in shape[1:-1])]
    if n < 2 or not unclear:
        return {}
    smaller = _input_shapes(layers, forward, without_last(inputs, n))
    dims: dict[str, int] = {}
    for name in unclear:
        pairs = zip(shapes[name], smaller.get(name, ()), strict=False)
        changed = [dim for dim, (before, after) in enumerate(pairs) if before != after]
        dims |= {name: changed[0]} if changed and changed[0] > 0 else {}
    return dims


def _input_shapes(layers: Mapping[str, nn.Module], forward: Callable[[Any], Any], inputs: Any) -> dict[str, Any]:
    shapes = {}
    with ExitStack() as hooks:
        for name, module in layers.items():

            def note(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                tensor = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
                shapes[name] = () if tensor is None else tuple(tensor.shape)

            hooks.callback(hook_before(module, note))
        forward(inputs)
    return shapes


def size_of(inputs: Any) -> int:
    """Samples in the inputs of a batch; 0 where that is not known."""
    if isinstance(inputs, Tensor):
        return len(inputs) if inputs.ndim else 0
    parts = inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, list | tuple) else ()
    return max(map(size_of, parts), default=0)


def without_last(inputs: Any, n: int) -> Any:
    """The inputs of a batch of n samples without the last of them."""
    return first_samples(inputs, n, n - 1)


def first_samples(inputs: Any, n: int, count: int) -> Any:
    """The inputs of the first samples of a batch of n."""
    if isinstance(inputs, Tensor):
        return inputs[:count] if inputs.ndim and len(inputs) == n else inputs
    if isinstance(inputs, Mapping):
        return {key: first_samples(part, n, count) for key, part in inputs.items()}
    if type(inputs) not in (list, tuple):
        return inputs
    return type(inputs)(first_samples(part, n, count) for part in inputs)
