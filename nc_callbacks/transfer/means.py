"""Class means of a stream of features, and their covariance within classes, as buffers of a module."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from nc_callbacks.probe import class_indices, undisturbed
from nc_callbacks.statistics import ClassMoments, ClassStatistics, Covariance, wide_dtype
from nc_callbacks.transfer.features import BatchFn, FeatureSample, as_rows, feature_batches
from nc_callbacks.transfer.forms import check_width


class StreamedMeans(nn.Module):
    """Class counts and means, int64 and float64 buffers that half precision leaves as they are, and what waits.

    Args:
        num_features: p; None for that of the first batch.
        num_classes: k, at least 2.
        ignore_index: Samples with this target are left out; None for none.
        covariance: Keep Σ_W too, p × p numbers.

    Raises:
        ValueError: There are fewer than two classes, or too many features for Σ_W.
    """

    counts: Tensor
    weights: Tensor
    means: Tensor
    within: Tensor | None
    precision: Tensor

    def __init__(
        self,
        num_features: int | None,
        num_classes: int,
        ignore_index: int | None = None,
        covariance: bool = False,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}.")
        if covariance:
            check_width(num_features or 0)
        means = torch.zeros(num_classes, num_features or 0)
        means = means.to(wide_dtype(means.device))
        self.ignore_index, self.covariance = ignore_index, covariance
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.long))
        self.register_buffer("weights", means.new_zeros(num_classes))
        self.register_buffer("means", means)
        self.register_buffer("within", means.new_zeros(means.shape[1:] * 2) if covariance else None)
        self.register_buffer("precision", means.new_zeros(()))
        self._named: set[int] = set()
        self._restart_statistics()

    @property
    def num_classes(self) -> int:
        """k."""
        return self.means.shape[0]

    @property
    def num_features(self) -> int | None:
        """p, or None before the first batch is finalised."""
        return self.means.shape[1] or None

    def update(self, features: Float[Tensor, "n *p"], targets: Int[Tensor, " n"]) -> None:
        """Add a batch.

        Args:
            features: (n, p); (n, p, 1, 1) and the like are flattened; (n, …, p) with targets (n, …) counts every
                position as a sample.
            targets: Class indices in 0…k−1, or one-hot or soft labels (their argmax counts).

        Raises:
            ValueError: Features of another width than before, targets out of range, shapes that do not fit; or they
                are too many for Σ_W.
        """
        indices = class_indices(targets, self.num_classes)
        if self.covariance and features.ndim > 1:
            check_width(features.shape[1:].numel() if indices.ndim <= 1 else features.shape[-1])
        self.statistics.update(features, indices)

    @torch.no_grad()
    def forget(self, keep: float) -> None:
        """Let all samples so far weigh less, so that the head follows a stream of data that drifts.

        Means and Σ_W are averages in which a sample weighs `keep` once this was called, keep² once it was called twice,
        … Called before each batch's `update` and `finalize`, it keeps some 1/(1 − keep) batches in mind. `counts` stay
        the numbers of samples seen.

        Args:
            keep: Above 0 and at most 1, which changes nothing.

        Raises:
            ValueError: It is not.
            RuntimeError: Samples were added that `finalize` has not seen.

        Example:
            >>> from nc_callbacks import CentredMeanHead
            >>> head = CentredMeanHead(num_features=1, num_classes=2, normalize="none")
            >>> for position in (0.0, 4.0):
            ...     head.forget(0.5)
            ...     head.update(torch.tensor([[position], [position + 1]]), torch.tensor([0, 1]))
            ...     head.finalize()
            >>> head.means.tolist()  # (0.5 · 0 + 4) / 1.5
            [[2.6666666666666665], [3.6666666666666665]]
        """
        if not 0 < keep <= 1:
            raise ValueError(f"keep must be a weight above 0 and at most 1, got {keep!r}.")
        self._refuse_pending("forget")
        self.weights.mul_(keep)

    def update_from(
        self, backbone: nn.Module, loader: Any, batch_fn: BatchFn | None = None, sample: FeatureSample | None = None
    ) -> None:
        """Add the features that a backbone gives on a loader, undisturbed; some of them to a random sample too."""
        with undisturbed(backbone):
            for features, targets in feature_batches(backbone, loader, batch_fn):
                self.update(features, targets)
                if sample is not None:
                    rows, indices = as_rows(features, class_indices(targets, self.num_classes))
                    kept = slice(None) if self.ignore_index is None else indices != self.ignore_index
                    sample.update(rows[kept], indices[kept])

    def _of_width(self) -> list[Tensor]:
        """Tensors that have a column per feature and a row per class."""
        return [self.means]

    def _of_class(self) -> list[Tensor]:
        """Tensors that have an entry per class."""
        return [self.counts, self.weights]

    @property
    def _pending(self) -> int:
        """Samples that the means do not hold yet."""
        return int(self.statistics.counts.sum())

    def _refuse_pending(self, method: str) -> None:
        if pending := self._pending:
            raise RuntimeError(f"{pending} samples were added since the last finalize(): call it before {method}().")

    def _restart_statistics(self) -> None:
        k, p = self.num_classes, self.num_features
        kind: Covariance = "pooled" if self.covariance else "none"
        statistics = ClassStatistics(k, p, covariance=kind, ignore_index=self.ignore_index)
        self.statistics = statistics.to(self.means.device)

    def _take_new(self) -> ClassMoments:
        """The moments of all ranks' samples since the last call."""
        with warnings.catch_warnings():
            # One rank may have no sample, or none may be new.
            warnings.filterwarnings("ignore", "The ``compute`` method")
            new = self.statistics.compute()
        self._restart_statistics()
        return new

    def _add_to_means(self, new: ClassMoments) -> None:
        """Add samples to the class means.

        Raises:
            ValueError: Features were not finite, or fewer than two classes have samples.
        """
        if new.nonfinite:
            raise ValueError(
                f"{new.nonfinite} of {int(new.counts.sum())} samples have NaN or infinite features, and so would the "
                "class means. Leave them out, or compute the features in a wider dtype."
            )
        if not self.num_features:
            self._resize(new.means.shape)
        counts = self.counts + new.counts
        if int((counts > 0).sum()) < 2:
            raise ValueError(
                f"Class means can be compared where at least 2 classes have samples; there are {int(counts.sum())} "
                f"samples of {int((counts > 0).sum())} classes. Check the loader, or call update first."
            )
        added = new.counts.to(self.means.dtype)
        if not added.any():
            return
        weights = self.weights + added
        share = torch.where(added > 0, added / weights, 0)
        gap = torch.where(new.present[:, None], new.means - self.means, 0)
        if self.within is not None:
            if new.within is None:
                raise ValueError(
                    "A whitened head needs the within-class covariance, but these moments were gathered with "
                    'covariance="none". Use ClassStatistics(..., covariance="pooled").'
                )
            before, after = self.weights.sum(), added.sum()
            between = ((self.weights * share)[:, None] * gap).T @ gap
            self.within.copy_((before * self.within + after * new.within + between) / (before + after))
        self.means += share[:, None] * gap
        self.weights.copy_(weights)
        self.counts.copy_(counts)
        self.precision.fill_(max(float(self.precision), new.precision))

    def _warn_of_absent(self, present: Tensor) -> None:
        """Name classes without samples, each once."""
        absent = [c for c in (~present).nonzero().squeeze(1).tolist() if c not in self._named]
        self._named.update(absent)
        if absent:
            rank_zero_warn(
                f"No sample has class {', '.join(map(str, absent[:10]))}{', …' if len(absent) > 10 else ''}: "
                f"{len(absent)} of the {self.num_classes} rows of the weight are zero."
            )

    def _resize(self, shape: torch.Size) -> None:
        for tensor in self._of_width():
            tensor.data = tensor.new_zeros(shape)
        if self.within is not None:
            check_width(shape[1])
            self.within.data = self.within.new_zeros(shape[1], shape[1])
        self._restart_statistics()

    def _add_classes(self, new: int) -> None:
        for tensor in (*self._of_class(), *self._of_width()):
            tensor.data = torch.cat([tensor, tensor.new_zeros(new, *tensor.shape[1:])])
        self._restart_statistics()

    def _wide(self) -> list[str]:
        """Names of the buffers that keep their precision."""
        return ["weights", "means", "precision", *(["within"] if self.covariance else [])]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = {name: getattr(self, name) for name in self._wide()}
        super()._apply(fn, recurse)
        for name, value in before.items():
            moved = getattr(self, name)
            if moved.dtype != value.dtype:
                # half() and the like are meant for the weight.
                setattr(self, name, value.to(moved.device))
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if pending := self._pending:
            rank_zero_warn(
                f"{pending} samples were added since the last finalize(); the state_dict does not hold them."
            )
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        error_msgs: list[str] = others[-1]
        means = state_dict.get(f"{prefix}means", self.means)
        if means.shape[0] != self.num_classes or (self.num_features or means.shape[1]) != means.shape[1]:
            error_msgs.append(
                f"The saved {type(self).__name__} has {means.shape[0]} classes and {means.shape[1]} features, this one "
                f"{self.num_classes} and {self.num_features}. Make it with the saved numbers (num_features=None takes "
                "the saved one), and call extend(num_classes) after loading for further classes."
            )
            return
        # Heads saved before there were weights of samples: each counts once.
        for name, value in {"weights": state_dict.get(f"{prefix}counts"), "precision": self.precision}.items():
            if value is not None:
                state_dict.setdefault(f"{prefix}{name}", value.to(self.means.dtype))
        if self.means.shape != means.shape:
            self._resize(means.shape)
        super()._load_from_state_dict(state_dict, prefix, *others)
        self._restart_statistics()
