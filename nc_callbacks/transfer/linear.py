"""A linear classifier whose rows are made of class means, fixed, trained or mixed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from nc_callbacks.probe import class_indices
from nc_callbacks.statistics import wide_dtype
from nc_callbacks.statistics.batches import check_range
from nc_callbacks.transfer.features import as_rows
from nc_callbacks.transfer.forms import HeadMode
from nc_callbacks.transfer.means import StreamedMeans
from nc_callbacks.transfer.scale import best_scale, sum_over_ranks


class LinearOfMeans(StreamedMeans):
    """Weight, bias and mixing matrix beside the class means, and what is done with them.

    Args:
        num_features, num_classes, ignore_index, covariance: See `StreamedMeans`.
        mode: What is trained: nothing, weight and bias, or the mixing matrix.
        scale: Factor of the logits.
        bias: Whether there is one.
    """

    scale: Tensor
    weight: Tensor
    bias: Tensor | None
    mixing: Tensor

    def __init__(
        self,
        num_features: int | None,
        num_classes: int,
        ignore_index: int | None,
        covariance: bool,
        mode: HeadMode,
        scale: float,
        bias: bool,
    ) -> None:
        super().__init__(num_features, num_classes, ignore_index, covariance)
        self.mode: HeadMode = mode
        self.register_buffer("scale", torch.tensor(scale, dtype=self.means.dtype))
        values = {
            "weight": torch.zeros(num_classes, num_features or 0),
            "bias": torch.zeros(num_classes) if bias else None,
        }
        for name, value in values.items():
            if mode == "trainable" and value is not None:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)
        if mode == "mixing":
            self.mixing = nn.Parameter(torch.eye(num_classes))
        self._fitted = False

    @property
    def linear_weight(self) -> Float[Tensor, "k p"]:
        """The weight that the head amounts to: `weight`, and in mixing mode Vᵀ times it."""
        return self.mixing.T @ self.weight if self.mode == "mixing" else self.weight

    @property
    def linear_bias(self) -> Float[Tensor, " k"] | None:
        """The bias that the head amounts to: `bias`, and in mixing mode Vᵀ times it; None where there is none."""
        return self.mixing.T @ self.bias if self.mode == "mixing" and self.bias is not None else self.bias

    def forward(self, features: Float[Tensor, "*n p"]) -> Float[Tensor, "*n k"]:
        """Logits: scale · hᵀM̄ᵀ, or scale · (Wh + b), or what training has made of it.

        Raises:
            RuntimeError: No class has been seen, or `finalize` was not called.
            ValueError: The features have another width.
        """
        self._check(features)
        return F.linear(features, self.linear_weight, self.linear_bias)

    @torch.no_grad()
    def fit_scale(
        self,
        features: Float[Tensor, "*n p"],
        targets: Int[Tensor, "*n"],
        over_ranks: Callable[[Tensor], Tensor] = sum_over_ranks,
    ) -> float:
        """Scale the logits so that their mean cross-entropy on these samples is least; gives the new scale.

        In float64; finite also where all are classified correctly (see `nc_callbacks.transfer.scale.best_scale`). Where
        torch.distributed is initialised, all ranks must by default call it, each with its own samples.

        Args:
            features: Training features.
            targets: As in `update`.
            over_ranks: Sums a tensor over the ranks whose samples count.

        Raises:
            RuntimeError: As `forward`.
            ValueError: The shapes do not fit, targets are out of range, or no positive scale is better than equal
                logits.
        """
        rows, indices = as_rows(features, class_indices(targets, self.num_classes))
        rows = rows if len(rows) else rows.new_zeros(0, self.weight.shape[1])  # a rank without samples knows no width
        self._check(rows)
        check_range(indices.cpu(), self.num_classes)
        device, wide = self.weight.device, wide_dtype(self.weight.device)
        weight, bias = self.linear_weight.to(wide), self.linear_bias
        logits = F.linear(rows.to(device, wide), weight, None if bias is None else bias.to(wide))
        factor = best_scale(logits, indices.to(device), over_ranks)
        for tensor in (self.weight, self.bias, self.scale):
            if tensor is not None:
                tensor.mul_(factor)
        return float(self.scale)

    @torch.no_grad()
    def extend(self, num_classes: int) -> None:
        """Make room for further classes; counts and means of the old ones stay exactly as they are.

        So do the old rows of the weight (and bias, and V), trained or not, until `finalize` is called with samples of
        the new classes, whose rows are zero so far. An optimiser must be made again.

        Args:
            num_classes: The new k.

        Raises:
            ValueError: It is less than the present k.
            RuntimeError: Samples were added that `finalize` has not seen.

        Example:
            >>> from nc_callbacks import CentredMeanHead
            >>> head = CentredMeanHead(num_features=2, num_classes=2)
            >>> head.update(torch.eye(2), torch.tensor([0, 1]))
            >>> head.finalize()
            >>> head.extend(3)
            >>> head.counts.tolist(), head(torch.eye(2)).shape
            ([1, 1, 0], torch.Size([2, 3]))
        """
        new = num_classes - self.num_classes
        if new < 0:
            raise ValueError(f"extend expects at least the present {self.num_classes} classes, got {num_classes}.")
        self._refuse_pending("extend")
        self._add_classes(new)
        for parameter in self.parameters():
            parameter.grad = None
        if self.mode == "mixing":
            self.mixing.data = torch.block_diag(self.mixing, torch.eye(new).to(self.mixing))

    @torch.no_grad()
    def to_linear(self) -> nn.Linear:
        """A plain `torch.nn.Linear` that gives the same logits, on the same device, in the same dtype.

        It has a bias where the head is whitened.
        """
        self._check(self.weight)
        weight, bias = self.linear_weight, self.linear_bias
        # The usual constructor draws random numbers for a weight that is thrown away.
        options = {"bias": bias is not None, "device": weight.device, "dtype": weight.dtype}
        linear = nn.utils.skip_init(nn.Linear, *weight.T.shape, **options)
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias)
        return linear

    def _check(self, features: Tensor) -> None:
        if not self._fitted:
            raise RuntimeError(
                f"{type(self).__name__} has no class means yet: call update(features, targets) and finalize()."
            )
        if features.shape[-1] != self.weight.shape[1]:
            raise ValueError(
                f"Expected features with a last dimension of {self.weight.shape[1]}, as when the class means were "
                f"taken; got {tuple(features.shape)}."
            )

    @torch.no_grad()
    def _set(self, weight: Float[Tensor, "seen p"], bias: Float[Tensor, " seen"]) -> None:
        """Take these as the rows of the classes that have samples, times the scale; those of the others are zero."""
        present = self.counts > 0
        for own, rows in ((self.weight, weight), (self.bias, bias)):
            if own is not None:
                value = rows.new_zeros(own.shape)
                value[present] = self.scale * rows
                own.copy_(value)
        if self.mode == "mixing":
            self.mixing.copy_(torch.eye(self.num_classes))
        self._fitted = True
        self._warn_of_absent(present)

    def _of_width(self) -> list[Tensor]:
        return [*super()._of_width(), self.weight]

    def _of_class(self) -> list[Tensor]:
        return [*super()._of_class(), *([] if self.bias is None else [self.bias])]

    def _wide(self) -> list[str]:
        return [*super()._wide(), "scale"]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *others)
        self._fitted = bool(self.counts.any())
