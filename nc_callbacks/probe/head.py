"""A classifier that has kept its contract, and how its rows are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nc_callbacks.probe.linear import Shape, affine_map
from nc_callbacks.probe.names import classifier_weight
from nc_callbacks.probe.outputs import Found


@dataclass(frozen=True)
class Head:
    """What was found out about a model's classifier on the batch that was tried."""

    name: str
    """Its dotted name."""
    shape: Shape
    """How its input and output are made of rows."""
    order: tuple[int, ...] = ()
    """The dimensions of its positions in the order of the targets'; empty where they are the same."""
    affine: bool = True
    """Whether its output is an affine map of its input, so that it has a weight."""
    found: Found | None = None
    """Where its output is in what the model returns; None where it is not there as it is."""
    size: float = 1.0
    """Order of magnitude of its features."""
    dtype: torch.dtype = torch.float32
    """Of its features."""
    sample_dims: Mapping[str, int] = field(default_factory=dict)
    """Which dimension of a further layer's input the samples lie in, where it is not the first."""
    averaged: frozenset[str] = frozenset()
    """Further layers with maps so wide that they are averaged over positions."""
    projected: frozenset[str] = frozenset()
    """Layers, the classifier's input among them, with so many features that they are projected."""

    def with_layers_of(self, other: Head) -> Head:
        """The same, with what is known of the layers that others watch."""
        return replace(
            self,
            sample_dims={**other.sample_dims, **self.sample_dims},
            averaged=self.averaged | other.averaged,
            projected=self.projected | other.projected,
        )

    @staticmethod
    def by_weight(name: str, module: nn.Module) -> Head:
        """Of a module that has not run, by the shape of its weight.

        Raises:
            ValueError: It has no weight with one row per class.
        """
        weight = classifier_weight(module)
        if weight is None:
            raise ValueError(f"head {name!r} ({type(module).__name__}) has no weight to tell its shape by.")
        example = tuple(weight.shape[1:])
        return Head(name, Shape("last" if weight.ndim == 2 else "all", example, len(weight)))

    @property
    def scale(self) -> float:
        """What the model multiplies its output by; NaN where that goes through another increasing function."""
        return 1.0 if self.found is None else self.found.scale

    @property
    def num_classes(self) -> int:
        """k."""
        return self.shape.num_classes

    @property
    def num_features(self) -> int:
        """p."""
        return self.shape.num_features

    def inputs(self, x: Tensor) -> Float[Tensor, "*positions p"]:
        """Rows of its input, at the targets' positions."""
        return self._at_positions(self.shape.inputs(x))

    def outputs(self, f: Tensor) -> Float[Tensor, "*positions k"]:
        """Rows of its output, at the targets' positions."""
        return self._at_positions(self.shape.outputs(f))

    def _at_positions(self, rows: Tensor) -> Tensor:
        # A single sample that the model has squeezed has one dimension less.
        return rows.permute(*self.order, -1) if len(self.order) == rows.ndim - 1 > 0 else rows

    def weight_and_bias(self, module: nn.Module) -> tuple[Float[Tensor, "k p"] | None, Float[Tensor, " k"] | None]:
        """W and b as they are now, as copies; None where it has none. Parameters must be whole."""
        return affine_map(module, self.shape, self.size, self.dtype) if self.affine else (None, None)
