"""Capturing what goes into a model's classifier and other layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nc_callbacks.probe.batches import class_indices
from nc_callbacks.probe.classifier import classifier_weight, named_head, named_module, unsharded

Pool = Literal["mean"] | None


@dataclass(frozen=True)
class Batch:
    """What one forward pass showed: a row a sample."""

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
        head: Dotted name of the classifier.
        layers: Dotted names of further modules whose input is watched.
        pool: ``"mean"`` averages layers' inputs over all dimensions after the second; by default they are flattened.

    Raises:
        ValueError: A name is not in the model, or the head has no weight matrix.
    """

    def __init__(self, model: nn.Module, head: str, layers: Sequence[str] = (), pool: Pool = None) -> None:
        self.head = head
        with unsharded(model):
            self.module = named_head(model, head)
            weight = classifier_weight(self.module)
            assert weight is not None
            self.num_classes, self.num_features = weight.shape[0], math.prod(weight.shape[1:])
        self.modules = {head: self.module} | {name: named_module(model, name, "layer") for name in layers}
        self.model = model
        self.pool = pool
        self._inputs: dict[str, list[Tensor]] = {}
        self._outputs: list[Tensor] = []
        self._hooks = ExitStack()

    def weight_and_bias(self) -> tuple[Float[Tensor, "k p"], Float[Tensor, " k"] | None]:
        """Copies of W, one row a class (a convolutional weight is flattened), and b or None.

        Sharded parameters are gathered, so that every rank has to call it.
        """
        with unsharded(self.model):
            weight, bias = classifier_weight(self.module), getattr(self.module, "bias", None)
            assert weight is not None
            return _whole(weight).flatten(1), _whole(bias) if isinstance(bias, Tensor) else None

    def __enter__(self) -> Tap:
        for name, module in self.modules.items():

            def before(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                tensor = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
                if tensor is not None and not _in_backward():
                    # A copy: the model may overwrite it in place, and a view would keep its whole storage alive.
                    self._inputs.setdefault(name, []).append(_whole(tensor))

            self._hooks.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)

        def after(module: nn.Module, args: Any, output: Any) -> None:
            if not _in_backward():
                self._outputs.append(_whole(output))

        self._hooks.callback(self.module.register_forward_hook(after).remove)
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

    def read(self, targets: Any) -> Batch:
        """What the forward pass since the last call left at the hooks, as rows.

        Raises:
            ValueError: A watched module did not run or ran more than once, or its rows do not match the targets.
        """
        inputs, output = self._taken()
        k = self.num_classes
        positions = output.shape[:-1] if output.ndim > 2 and output.shape[-1] == k else None
        y = class_indices(targets, k, sequence=getattr(targets, "shape", None) == positions)
        features = {name: self._rows(name, x, y) for name, x in inputs.items()}
        f = output.reshape(-1, k) if output.shape[-1] == k and y.ndim > 1 else output.flatten(1)
        y = y.reshape(-1)
        if f.shape != (len(y), k):
            raise ValueError(
                f"The classifier {self.head!r} gives outputs of shape {tuple(output.shape)} for targets of shape "
                f"{tuple(targets.shape)}; expected one row of {k} outputs a target."
            )
        return Batch(features=features, outputs=f, targets=y)

    def read_features(self) -> dict[str, Float[Tensor, "n p"]]:
        """Features alone of the forward pass since the last call, for data without targets.

        Raises:
            ValueError: A watched module did not run or ran more than once.
        """
        inputs, _ = self._taken()
        # Positions of a sequence are samples, as they are where targets say so.
        sequence = inputs[self.head].ndim > 2 and inputs[self.head].shape[-1] == self.num_features
        return {name: x.flatten(0, -2) if sequence else self._flat(name, x) for name, x in inputs.items()}

    def _taken(self) -> tuple[dict[str, Tensor], Tensor]:
        inputs, outputs = self._inputs, self._outputs
        self.forget()
        for name in self.modules:
            if (calls := len(inputs.get(name, []))) != 1:
                raise ValueError(
                    f"Module {name!r} ran {calls} times in one forward pass; it is watched where it runs once. "
                    "Name another module, or pass forward_fn=..., a function (module, inputs) that runs it once."
                )
        return {name: captured[0] for name, captured in inputs.items()}, outputs[0]

    def _flat(self, name: str, x: Tensor) -> Tensor:
        pooled = name != self.head and self.pool == "mean" and x.ndim > 2
        return x.flatten(2).mean(2) if pooled else x.flatten(1)

    def _rows(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        rows = x.flatten(0, -2) if y.ndim > 1 else self._flat(name, x)
        if len(rows) != y.numel():
            raise ValueError(
                f"Module {name!r} sees an input of shape {tuple(x.shape)} for targets of shape {tuple(y.shape)}; "
                "expected one row a target. Name another module, or pass batch_fn=... or forward_fn=...."
            )
        return rows


def _whole(tensor: Tensor) -> Tensor:
    """A copy without gradient, gathered from all ranks where it is a DTensor."""
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.clone()


def _in_backward() -> bool:
    """Whether autograd runs: activation checkpointing then repeats a forward pass that was seen before."""
    return torch._C._current_graph_task_id() != -1
