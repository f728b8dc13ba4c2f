"""A linear classifier whose weight is the centred class means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from nc_callbacks.functional import centred_mean_weight
from nc_callbacks.probe import class_indices
from nc_callbacks.statistics import ClassMoments, wide_dtype
from nc_callbacks.statistics.batches import check_range
from nc_callbacks.transfer.features import BatchFn, FeatureSample, as_rows, check_backbone, device_of
from nc_callbacks.transfer.forms import HeadMode, Normalize, check_form
from nc_callbacks.transfer.means import StreamedMeans
from nc_callbacks.transfer.scale import best_scale, sum_over_ranks


class CentredMeanHead(StreamedMeans):
    """A classifier with the weight M̄, the centred class means of the features (Seddik & Tamaazousti 2022, Fig. 3).

    Feed it features with `update` (as many batches as there are; only class means are kept) and call `finalize`, or use
    `from_loader` or `from_moments`. Means are summed exactly (`nc_callbacks.ClassStatistics`) and merged over ranks
    where torch.distributed is initialised; they and the class counts are float64 and int64 buffers that half precision
    leaves as they are. Logits are scale · hᵀM̄ᵀ: the predictions do not depend on the scale, a loss does.

    ``mode="fixed"``, the paper's CM, has no parameters. ``"trainable"``, its WICM, has M̄ as the first value of the
    parameter `weight`. ``"mixing"``, its LWM, gives hᵀ(M̄ᵀV) with the k × k parameter `mixing`, V, alone; the paper does
    not say where V starts, here it is the identity, so that training starts from CM.

    `finalize` sets the weight anew from all samples so far, and so undoes training. A `state_dict` holds the finished
    statistics and weights, but not samples that `finalize` has not seen.

    Args:
        num_features: p; None for that of the first batch.
        num_classes: k, at least 2.
        mode: ``"fixed"``, ``"trainable"`` or ``"mixing"``.
        normalize: M is divided by its largest singular value (``"spectral"``, the paper), by ‖M‖_F (``"frobenius"``) or
            by nothing (``"none"``).
        scale: Factor of the weight; see `fit_scale`.
        ignore_index: Samples with this target are left out; None for none.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> features, targets = torch.tensor([[3.0, 0.0], [1.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0, 1])
        >>> head = CentredMeanHead(num_features=2, num_classes=2, normalize="none")
        >>> head.update(features, targets)
        >>> head.finalize()
        >>> head.weight.tolist(), head(features).argmax(-1).tolist()
        ([[1.0, -1.0], [-1.0, 1.0]], [0, 0, 1])
    """

    scale: Tensor
    weight: Tensor
    mixing: Tensor

    def __init__(
        self,
        num_features: int | None,
        num_classes: int,
        mode: HeadMode = "fixed",
        normalize: Normalize = "spectral",
        scale: float = 1.0,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(num_features, num_classes, ignore_index)
        check_form(mode, normalize, scale)
        self.mode, self.normalize = mode, normalize
        weight = torch.zeros(num_classes, num_features or 0)
        self.register_buffer("scale", torch.tensor(scale, dtype=self.means.dtype))
        if mode == "trainable":
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight)
        if mode == "mixing":
            self.mixing = nn.Parameter(torch.eye(num_classes))
        self._fitted = False

    @classmethod
    def from_moments(
        cls, moments: ClassMoments, mode: HeadMode = "fixed", normalize: Normalize = "spectral", scale: float = 1.0
    ) -> CentredMeanHead:
        """The head of these class means.

        Args:
            moments: What `ClassStatistics.compute` gave (``covariance="none"`` will do).
            mode, normalize, scale: See the class.

        Raises:
            ValueError: As `finalize`.
        """
        k, p = moments.means.shape
        head = cls(p, k, mode, normalize, scale).to(moments.means.device)
        head._add(moments)
        return head

    @classmethod
    def from_loader(
        cls,
        backbone: nn.Module,
        loader: Any,
        num_classes: int,
        mode: HeadMode = "fixed",
        normalize: Normalize = "spectral",
        scale: float | Literal["fit"] = 1.0,
        batch_fn: BatchFn | None = None,
        ignore_index: int | None = None,
    ) -> CentredMeanHead:
        """The head of the features that a backbone gives on a loader, in one pass.

        The backbone runs on its own device in eval mode, without gradients; its flags, its buffers and all random
        states are left as they were. Where torch.distributed is initialised, the ranks share the data and all get the
        same head.

        Args:
            backbone: From inputs to features (n, p), or (n, p, 1, 1) and the like.
            loader: Training data with targets.
            num_classes: k.
            mode, normalize: See the class.
            scale: A number, or ``"fit"``: `fit_scale` on the features, all or 8,192 a rank drawn at random.
            batch_fn: From a batch to (inputs, targets); see `nc_callbacks.probe.default_batch_fn` for the default.
            ignore_index: Samples (or positions of a sequence) with this target are left out; None for none.

        Raises:
            ValueError: The loader is empty or has no targets, a target is out of range, the backbone is no module or
                gives no tensor; and as `finalize`.

        Example:
            >>> from torch.utils.data import DataLoader, TensorDataset
            >>> targets = torch.arange(60) % 3
            >>> data = TensorDataset(torch.eye(3)[targets] + 0.1 * torch.randn(60, 3), targets)
            >>> head = CentredMeanHead.from_loader(torch.nn.Identity(), DataLoader(data, batch_size=20), num_classes=3)
            >>> head.counts.tolist(), head.weight.shape
            ([20, 20, 20], torch.Size([3, 3]))
        """
        check_backbone(backbone)
        given = 1.0 if scale == "fit" else scale
        head = cls(None, num_classes, mode, normalize, given, ignore_index).to(device_of(backbone))
        sample = FeatureSample() if scale == "fit" else None
        head.update_from(backbone, loader, batch_fn, sample)
        head.finalize()
        if sample is not None:
            head.fit_scale(*sample.read())
        return head

    @property
    def linear_weight(self) -> Float[Tensor, "k p"]:
        """The weight that the head amounts to: `weight`, and in mixing mode Vᵀ times it."""
        return self.mixing.T @ self.weight if self.mode == "mixing" else self.weight

    @torch.no_grad()
    def finalize(self) -> None:
        """Set the weight to scale · M̄ of all samples so far (in mixing mode, V to the identity).

        A class without samples takes no part in the centring; its weight is zero, and a warning names it once. Where
        torch.distributed is initialised, all ranks must call it.

        Raises:
            ValueError: Fewer than two classes have samples, all class means coincide, or features were not finite (the
                samples since the last `finalize` are then dropped).
        """
        self._add(self._take_new())

    def forward(self, features: Float[Tensor, "*n p"]) -> Float[Tensor, "*n k"]:
        """Logits: scale · hᵀM̄ᵀ, or what training has made of it.

        Raises:
            RuntimeError: No class has been seen, or `finalize` was not called.
            ValueError: The features have another width.
        """
        self._check(features)
        return F.linear(features, self.linear_weight)

    @torch.no_grad()
    def fit_scale(
        self,
        features: Float[Tensor, "*n p"],
        targets: Int[Tensor, "*n"],
        over_ranks: Callable[[Tensor], Tensor] = sum_over_ranks,
    ) -> float:
        """Scale the weight so that the mean cross-entropy of the logits on these samples is least; gives the new scale.

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
        factor = best_scale(rows.to(device, wide) @ self.linear_weight.to(wide).T, indices.to(device), over_ranks)
        self.weight.mul_(factor)
        self.scale.mul_(factor)
        return float(self.scale)

    @torch.no_grad()
    def extend(self, num_classes: int) -> None:
        """Make room for further classes; counts and means of the old ones stay exactly as they are.

        So do the old rows of the weight (and V), trained or not, until `finalize` is called with samples of the new
        classes, whose rows are zero so far. An optimiser must be made again.

        Args:
            num_classes: The new k.

        Raises:
            ValueError: It is less than the present k.
            RuntimeError: Samples were added that `finalize` has not seen.

        Example:
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
        if pending := self._pending:
            raise RuntimeError(f"{pending} samples were added since the last finalize(): call it before extend().")
        self._add_classes(new)
        self.weight.grad = None
        if self.mode == "mixing":
            self.mixing.data = torch.block_diag(self.mixing, torch.eye(new).to(self.mixing))
            self.mixing.grad = None

    @torch.no_grad()
    def to_linear(self) -> nn.Linear:
        """A plain `torch.nn.Linear` without bias that gives the same logits, on the same device, in the same dtype."""
        self._check(self.weight)
        weight = self.linear_weight
        # The usual constructor draws random numbers for a weight that is thrown away.
        options = {"bias": False, "device": weight.device, "dtype": weight.dtype}
        linear = nn.utils.skip_init(nn.Linear, *weight.T.shape, **options)
        linear.weight.copy_(weight)
        return linear

    def extra_repr(self) -> str:
        return (
            f"num_features={self.num_features}, num_classes={self.num_classes}, mode={self.mode!r}, "
            f"normalize={self.normalize!r}, scale={float(self.scale):.4g}"
        )

    def _check(self, features: Tensor) -> None:
        if not self._fitted:
            raise RuntimeError("CentredMeanHead has no class means yet: call update(features, targets) and finalize().")
        if features.shape[-1] != self.weight.shape[1]:
            raise ValueError(
                f"Expected features with a last dimension of {self.weight.shape[1]}, as when the class means were "
                f"taken; got {tuple(features.shape)}."
            )

    def _add(self, new: ClassMoments) -> None:
        """Add samples to the class means, and set the weight."""
        self._add_to_means(new)
        self._set_weight()

    def _of_width(self) -> list[Tensor]:
        return [*super()._of_width(), self.weight]

    def _wide(self) -> list[str]:
        return [*super()._wide(), "scale"]

    @torch.no_grad()
    def _set_weight(self) -> None:
        present = self.counts > 0
        rows = centred_mean_weight(self.means[present], self.normalize)
        if not (rows.isfinite().all() and rows.any()):
            raise ValueError("All class means coincide: the features say nothing about the classes.")
        weight = torch.zeros_like(self.means)
        weight[present] = self.scale * rows
        self.weight.copy_(weight)
        if self.mode == "mixing":
            self.mixing.copy_(torch.eye(self.num_classes))
        self._fitted = True
        self._warn_of_absent(present)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *others)
        self._fitted = bool(self.counts.any())
