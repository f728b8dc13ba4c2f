"""Capturing what goes into a model's classifier and other layers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nc_callbacks.probe.head import Head
from nc_callbacks.probe.linear import is_affine
from nc_callbacks.probe.names import inside_script, named_head, named_module, unsharded, whole
from nc_callbacks.probe.outputs import relation_now, tensors_of
from nc_callbacks.probe.projection import Projection
from nc_callbacks.probe.targets import class_indices
from nc_callbacks.probe.trial import hook_after, hook_before

Pool = Literal["mean"] | None

_ROWS = 256
"""Rows on which a look asks whether the classifier still is the affine map of its weight."""


@dataclass(frozen=True)
class Batch:
    """Features, outputs and targets of one forward pass, one row per sample."""

    features: dict[str, Float[Tensor, "n p"]]
    """Input of each watched module, by its dotted name."""
    outputs: Float[Tensor, "n k"]
    """Output of the classifier, before any softmax."""
    targets: Int[Tensor, " n"]
    """Class indices."""

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return sum(tensor.nbytes for tensor in (*self.features.values(), self.outputs, self.targets))


class Tap:
    """Hooks on the classifier and further layers, open as a context; `read` gives what one forward pass left there.

    Args:
        model: The model that holds them.
        head: The classifier as `nc_callbacks.probe.check_head` gives it, or its dotted name: then its rows are taken to
            be as its weight is shaped, and the targets'.
        layers: Dotted names of further modules whose input is watched.
        pool: ``"mean"`` averages layers' inputs over all dimensions after the second; by default they are flattened.
        averaged: Further modules whose inputs are averaged over positions instead, see `positions_of`.
        max_features: Features to which those of the layers that `head` names as projected are projected.

    Raises:
        ValueError: A name is not in the model, or the head has no weight matrix.
    """

    def __init__(
        self,
        model: nn.Module,
        head: str | Head,
        layers: Sequence[str] = (),
        pool: Pool = None,
        averaged: Collection[str] = (),
        max_features: int | None = None,
    ) -> None:
        self.head = head if isinstance(head, str) else head.name
        with unsharded(model):
            self.module = named_head(model, self.head)
            self._form = Head.by_weight(head, self.module) if isinstance(head, str) else head
        self.num_classes, self.num_features = self._form.num_classes, self._form.num_features
        self.modules = {self.head: self.module} | {name: named_module(model, name, "layer") for name in layers}
        self.model = model
        self.pool = pool
        self.averaged = {*averaged, *self._form.averaged} - {self.head}
        self.max_features = max_features
        self.projected = frozenset() if max_features is None else self._form.projected
        self.shapes: dict[str, tuple[int, ...]] = {}
        """Of the inputs that were read last."""
        self._projections: dict[str, Projection] = {}
        self._inputs: dict[str, list[Tensor]] = {}
        self._outputs: list[Tensor] = []
        self._hooks = ExitStack()

    def weight_and_bias(self) -> tuple[Float[Tensor, "k p"] | None, Float[Tensor, " k"] | None]:
        """Copies of W, one row per class, and b or None, of the affine map that the classifier is now.

        Both are None where it is none, as a cosine classifier, or is one of other features than those that are read, as
        they are projected. Sharded parameters are gathered, so that every rank has to call it.
        """
        if self.head in self.projected:
            return None, None
        with unsharded(self.model):
            return self._form.weight_and_bias(self.module)

    def __enter__(self) -> Tap:
        for name, module in self.modules.items():

            def before(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                tensor = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
                if tensor is not None and not _in_backward():
                    # A copy: the model may overwrite it in place, and a view would keep its whole storage alive.
                    self._inputs.setdefault(name, []).append(whole(tensor))

            self._hooks.callback(hook_before(module, before))

        def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if not _in_backward():
                self._outputs.append(whole(output))

        self._hooks.callback(hook_after(self.module, after))
        return self

    def __exit__(self, *_: Any) -> None:
        self._hooks.close()
        self.forget()

    @property
    def ran(self) -> bool:
        """Whether a watched module ran since the last call of `read`."""
        return bool(self._inputs)

    def forget(self) -> None:
        """Drop what is captured."""
        self._inputs, self._outputs = {}, []

    def scale_in(self, returned: Any) -> float:
        """What the model multiplied the classifier's output by in the forward pass that is captured; see `Head.scale`.

        Raises:
            ValueError: What the model returned no longer is the classifier's output.
        """
        found = self._form.found
        if found is None or len(self._outputs) != 1:
            return self._form.scale
        scale = relation_now(found, self._form.shape.outputs(self._outputs[0]), tensors_of(returned))
        if scale is None:
            raise ValueError(
                f"What the model returns is no longer what the classifier {self.head!r} gives, as it was when training "
                "started: something beside or after it, which added nothing then, has changed since. Pass head=..., a "
                "module that has both inside, or forward_fn=..., a function (module, inputs) that returns the logits "
                "of one module."
            )
        return scale

    def stays_affine(self) -> bool:
        """Whether the classifier's weight and bias give what it gave in the forward pass that is captured."""
        weight, bias = self.weight_and_bias()
        if weight is None or len(self._outputs) != 1:
            return True
        of_module = self._form.shape
        h, f = of_module.inputs(self._inputs[self.head][0]), of_module.outputs(self._outputs[0])
        h, f = h.flatten(0, -2)[:_ROWS], f.flatten(0, -2)[:_ROWS]
        finite = h.isfinite().all(1) & f.isfinite().all(1)
        return not finite.any() or is_affine(self.module, weight, bias, h[finite], f[finite])

    def leave_out_weight(self) -> None:
        """Give no weight and bias from now on."""
        self._form = replace(self._form, affine=False)

    def read(self, targets: Any) -> Batch:
        """Captures of the forward pass since the last call, as rows.

        Raises:
            ValueError: A watched module did not run or ran more than once, or its rows do not match the targets.
        """
        inputs, output = self._taken()
        f = self._form.outputs(output)
        y = class_indices(targets, self.num_classes, sequence=getattr(targets, "shape", None) == f.shape[:-1])
        features = {name: self._narrow(name, self._rows(name, x, y)) for name, x in inputs.items()}
        rows, indices = f.reshape(-1, f.shape[-1]), y.reshape(-1)
        if rows.shape != (len(indices), self.num_classes):
            raise ValueError(
                f"The classifier {self.head!r} gives outputs of shape {tuple(output.shape)} for targets of shape "
                f"{tuple(targets.shape)}; expected one row of {self.num_classes} outputs a target."
            )
        return Batch(features=features, outputs=rows, targets=indices)

    def read_features(self) -> dict[str, Float[Tensor, "n p"]]:
        """Features alone of the forward pass since the last call, for data without targets.

        Raises:
            ValueError: A watched module did not run or ran more than once.
        """
        return self.read_unlabelled()[0]

    def read_unlabelled(self) -> tuple[dict[str, Float[Tensor, "n p"]], Float[Tensor, "n k"]]:
        """Features and the classifier's outputs, see `read_features`."""
        inputs, output = self._taken()
        rows = self._form.inputs(inputs[self.head])
        # Positions of a sequence are samples, as they are where targets say so.
        found = {name: x.flatten(0, -2) if rows.ndim > 2 else self._flat(name, x) for name, x in inputs.items()}
        found[self.head] = rows.reshape(-1, rows.shape[-1])
        f = self._form.outputs(output)
        return {name: self._narrow(name, x) for name, x in found.items()}, f.reshape(-1, f.shape[-1])

    def _taken(self) -> tuple[dict[str, Tensor], Tensor]:
        inputs, outputs = self._inputs, self._outputs
        self.forget()
        for name in self.modules:
            if (calls := len(inputs.get(name, []))) != 1:
                raise ValueError(
                    f"Module {name!r} ran {calls} times in one forward pass; it is watched where it runs once. "
                    "Name another module, or pass forward_fn=..., a function (module, inputs) that runs it once"
                    f"{inside_script(self.model, name)}."
                )
        self.shapes = {name: tuple(captured[0].shape) for name, captured in inputs.items()}
        return {name: captured[0] for name, captured in inputs.items()}, outputs[0]

    def _narrow(self, name: str, rows: Tensor) -> Tensor:
        if name not in self.projected:
            return rows
        if name not in self._projections:
            assert self.max_features is not None
            self._projections[name] = Projection(rows.shape[1], self.max_features)
        return self._projections[name](rows)

    def _flat(self, name: str, x: Tensor) -> Tensor:
        x = x.movedim(self._form.sample_dims.get(name, 0), 0)
        if name in self.averaged and x.ndim > 2:
            return x.mean(positions_of(x))
        return x.flatten(2).mean(2) if self.pool == "mean" and x.ndim > 2 else x.flatten(1)

    def _rows(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        if name == self.head:
            rows = self._form.inputs(x)
            rows = rows.reshape(-1, rows.shape[-1])
        elif y.ndim > 1:
            rows = _at_positions(x.movedim(self._form.sample_dims.get(name, 0), 0), tuple(y.shape))
        else:
            # A single sample that the model has squeezed.
            rows = self._flat(name, x[None] if y.numel() == 1 and (x.ndim == 1 or len(x) != 1) else x)
        if len(rows) != y.numel():
            raise ValueError(
                f"Module {name!r} sees an input of shape {tuple(x.shape)} for targets of shape {tuple(y.shape)}; "
                "expected one row per target. Name another module, or pass batch_fn=... or forward_fn=...."
            )
        return rows


def positions_of(x: Tensor) -> list[int]:
    """The dimensions of a layer's input that are positions, and no features.

    Of sequences (n, positions, p) the second, of maps (n, p, height, width) those after the second. Square maps whose
    last dimension alone differs, (n, side, side, p), have their features there.
    """
    if x.ndim == 3:
        return [1]
    sides = x.shape[1:-1]
    last = len(set(sides)) == 1 and x.shape[-1] != sides[0]
    return list(range(1, x.ndim - 1)) if last else list(range(2, x.ndim))


def _at_positions(x: Tensor, positions: tuple[int, ...]) -> Float[Tensor, "rows p"]:
    """Rows of a layer's input, whose features lie in the last dimension, or as in convolutions in the second."""
    second = tuple(x.shape[:-1]) != positions and (x.shape[0], *x.shape[2:]) == positions
    return (x.movedim(1, -1) if second else x).flatten(0, -2)


def _in_backward() -> bool:
    """Whether autograd runs: activation checkpointing then repeats a forward pass that was seen before."""
    return torch._C._current_graph_task_id() != -1
