"""Class means of a stream of features, as buffers of a module."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from nc_callbacks.probe import class_indices, undisturbed
from nc_callbacks.statistics import ClassMoments, ClassStatistics, wide_dtype
from nc_callbacks.transfer.features import BatchFn, FeatureSample, as_rows, feature_batches


class StreamedMeans(nn.Module):
    """Class counts and means, int64 and float64 buffers that half precision leaves as they are, and what waits.

    Args:
        num_features: p; None for that of the first batch.
        num_classes: k, at least 2.
        ignore_index: Samples with this target are left out; None for none.

    Raises:
        ValueError: There are fewer than two classes.
    """

    counts: Tensor
    means: Tensor

    def __init__(self, num_features: int | None, num_classes: int, ignore_index: int | None = None) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}.")
        means = torch.zeros(num_classes, num_features or 0)
        self.ignore_index = ignore_index
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.long))
        self.register_buffer("means", means.to(wide_dtype(means.device)))
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
            ValueError: Features of another width than before, targets out of range, shapes that do not fit.
        """
        self.statistics.update(features, class_indices(targets, self.num_classes))

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

    @property
    def _pending(self) -> int:
        """Samples that the means do not hold yet."""
        return int(self.statistics.counts.sum())

    def _restart_statistics(self) -> None:
        k, p = self.num_classes, self.num_features
        statistics = ClassStatistics(k, p, covariance="none", ignore_index=self.ignore_index)
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
        share = new.counts.to(self.means.dtype) / counts.clamp(min=1)
        gap = torch.where(new.present[:, None], new.means - self.means, 0)
        self.means += share[:, None] * gap
        self.counts.copy_(counts)

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
        self._restart_statistics()

    def _add_classes(self, new: int) -> None:
        for tensor in (self.counts, *self._of_width()):
            tensor.data = torch.cat([tensor, tensor.new_zeros(new, *tensor.shape[1:])])
        self._restart_statistics()

    def _wide(self) -> list[str]:
        """Names of the buffers that keep their precision."""
        return ["means"]

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
        if self.means.shape != means.shape:
            self._resize(means.shape)
        super()._load_from_state_dict(state_dict, prefix, *others)
        self._restart_statistics()
