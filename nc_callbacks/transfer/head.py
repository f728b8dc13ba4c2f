"""A linear classifier whose weight is the class means, centred or whitened."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from nc_callbacks.functional.rounding import FLOAT32
from nc_callbacks.functional.whitening import Priors
from nc_callbacks.statistics import ClassMoments
from nc_callbacks.transfer.features import BatchFn, FeatureSample, check_backbone, device_of
from nc_callbacks.transfer.forms import Form, HeadMode, Normalize, check_form
from nc_callbacks.transfer.linear import LinearOfMeans


class CentredMeanHead(LinearOfMeans):
    """A classifier with the weight M̄, the centred class means of the features (Seddik & Tamaazousti 2022, Fig. 3).

    Feed it features with `update` (as many batches as there are; only class means are kept, and Σ_W where whitened) and
    call `finalize`, or use `from_loader` or `from_moments`. Means are summed exactly (`nc_callbacks.ClassStatistics`)
    and merged over ranks where torch.distributed is initialised; they and the class counts are float64 and int64
    buffers that half precision leaves as they are. Logits are scale · hᵀM̄ᵀ: the predictions do not depend on the
    scale, a loss does.

    ``whiten=True`` gives scale · (Wh + b) with w_c = Σ⁻¹(m_c − m) and the bias −½ m_cᵀΣ⁻¹m_c, Fisher's linear
    discriminant (see `nc_callbacks.functional.whitened_weight`), from the same one pass and p × p numbers of memory.
    Where features share an offset (ReLU) or vary more along some directions than along others, it is by far the better
    classifier, and near to a trained one; centred means will do for features that have collapsed. From the bias its
    mean over the classes is taken out, which no probability depends on.

    ``mode="fixed"``, the paper's CM, has no parameters. ``"trainable"``, its WICM, has M̄ (or W and b) as the first
    value of the parameter `weight` (and `bias`). ``"mixing"``, its LWM, gives hᵀ(M̄ᵀV) (or (Wh + b)ᵀV) with the k × k
    parameter `mixing`, V, alone; the paper does not say where V starts, here it is the identity, so that training
    starts from CM.

    `finalize` sets the weight anew from all samples so far, and so undoes training. A `state_dict` holds the finished
    statistics and weights, but not samples that `finalize` has not seen.

    Args:
        num_features: p; None for that of the first batch.
        num_classes: k, at least 2.
        mode: ``"fixed"``, ``"trainable"`` or ``"mixing"``.
        normalize: The weight (and bias) is divided by the largest singular value of the weight (``"spectral"``, the
            paper and the default of centred means), by ‖M‖_F (``"frobenius"``) or by nothing (``"none"``, the default
            where whitened, whose softmax is a posterior as it stands).
        scale: Factor of the logits; see `fit_scale`.
        ignore_index: Samples with this target are left out; None for none.
        whiten: Whiten the class means by Σ = (1−a) Σ_W + a (tr Σ_W/p) I. At most 16,384 features.
        shrinkage: a in [0, 1]; by default the larger of `nc_callbacks.functional.oas_shrinkage` and
            `gcv_shrinkage`.
        priors: ``"empirical"`` adds the logarithm of each class's share of the samples to the bias.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> features, targets = torch.tensor([[3.0, 0.0], [1.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0, 1])
        >>> head = CentredMeanHead(num_features=2, num_classes=2, normalize="none")
        >>> head.update(features, targets)
        >>> head.finalize()
        >>> head.weight.tolist(), head(features).argmax(-1).tolist()
        ([[1.0, -1.0], [-1.0, 1.0]], [0, 0, 1])
        >>> head = CentredMeanHead(num_features=2, num_classes=2, whiten=True, shrinkage=0.5)
        >>> head.update(features, targets)
        >>> head.finalize()
        >>> head.weight.tolist()  # Σ is diag(1/2, 1/6)
        [[2.0, -6.0], [-2.0, 6.0]]
    """

    def __init__(
        self,
        num_features: int | None,
        num_classes: int,
        mode: HeadMode = "fixed",
        normalize: Normalize | None = None,
        scale: float = 1.0,
        ignore_index: int | None = None,
        *,
        whiten: bool = False,
        shrinkage: float | None = None,
        priors: Priors = "uniform",
    ) -> None:
        check_form(mode, normalize, scale)
        form = Form(normalize, whiten, shrinkage, priors)
        super().__init__(num_features, num_classes, ignore_index, whiten, mode, scale, bias=whiten)
        self.form = form

    @classmethod
    def from_moments(
        cls,
        moments: ClassMoments,
        mode: HeadMode = "fixed",
        normalize: Normalize | None = None,
        scale: float = 1.0,
        *,
        whiten: bool = False,
        shrinkage: float | None = None,
        priors: Priors = "uniform",
    ) -> CentredMeanHead:
        """The head of these class means.

        Args:
            moments: What `ClassStatistics.compute` gave (``covariance="none"`` will do for centred means).
            mode: As of the class, like those that follow.
            normalize: As of the class.
            scale: As of the class.
            whiten: As of the class.
            shrinkage: As of the class.
            priors: As of the class.

        Raises:
            ValueError: As `finalize`; or whitening needs a covariance that was not gathered.
        """
        k, p = moments.means.shape
        head = cls(p, k, mode, normalize, scale, whiten=whiten, shrinkage=shrinkage, priors=priors)
        head = head.to(moments.means.device)
        head._add(moments)
        return head

    @classmethod
    def from_loader(
        cls,
        backbone: nn.Module,
        loader: Any,
        num_classes: int,
        mode: HeadMode = "fixed",
        normalize: Normalize | None = None,
        scale: float | Literal["fit"] = 1.0,
        batch_fn: BatchFn | None = None,
        ignore_index: int | None = None,
        *,
        whiten: bool = False,
        shrinkage: float | None = None,
        priors: Priors = "uniform",
    ) -> CentredMeanHead:
        """The head of the features that a backbone gives on a loader, in one pass.

        The backbone runs on its own device in eval mode, without gradients; its flags, its buffers and all random
        states are left as they were. Where torch.distributed is initialised, the ranks share the data and all get the
        same head.

        Args:
            backbone: From inputs to features (n, p), or (n, p, 1, 1) and the like.
            loader: Training data with targets.
            num_classes: k.
            mode: As of the class, like `normalize`, `whiten`, `shrinkage` and `priors`.
            normalize: As of the class.
            scale: A number, or ``"fit"``: `fit_scale` on the features, all or 8,192 a rank drawn at random.
            batch_fn: From a batch to (inputs, targets); see `nc_callbacks.probe.default_batch_fn` for the default.
            ignore_index: Samples (or positions of a sequence) with this target are left out; None for none.
            whiten: As of the class.
            shrinkage: As of the class.
            priors: As of the class.

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
        settings: dict[str, Any] = {"whiten": whiten, "shrinkage": shrinkage, "priors": priors}
        head = cls(None, num_classes, mode, normalize, given, ignore_index, **settings).to(device_of(backbone))
        sample = FeatureSample() if scale == "fit" else None
        head.update_from(backbone, loader, batch_fn, sample)
        head.finalize()
        if sample is not None:
            head.fit_scale(*sample.read())
        return head

    @property
    def normalize(self) -> Normalize:
        """The norm that the weight is divided by."""
        return self.form.norm

    @torch.no_grad()
    def finalize(self) -> None:
        """Set weight and bias from all samples so far (in mixing mode, V to the identity).

        A class without samples takes no part in the centring; its rows are zero, so that another class always has a
        logit at least as large, and a warning names it once. Where torch.distributed is initialised, all ranks must
        call it.

        Raises:
            ValueError: Fewer than two classes have samples, all class means coincide, features were not finite (the
                samples since the last `finalize` are then dropped), or as `nc_callbacks.functional.whitened_weight`.
        """
        self._add(self._take_new())

    def extra_repr(self) -> str:
        """What the representation says of it."""
        whitened = f", whiten=True, shrinkage={self.form.shrinkage}, priors={self.form.priors!r}"
        return (
            f"num_features={self.num_features}, num_classes={self.num_classes}, mode={self.mode!r}, "
            f"normalize={self.normalize!r}, scale={float(self.scale):.4g}{whitened if self.form.whiten else ''}"
        )

    def _add(self, new: ClassMoments) -> None:
        """Add samples to the class means, and set the weight."""
        self._add_to_means(new)
        present = self.counts > 0
        precision = float(self.precision) or FLOAT32
        weight, bias = self.form.linear(self.means[present], self.within, self.weights[present], precision)
        if not (weight.isfinite().all() and weight.any()):
            raise ValueError("All class means coincide: the features say nothing about the classes.")
        self._set(weight, bias)
