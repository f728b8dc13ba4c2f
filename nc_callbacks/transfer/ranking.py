"""Source selection: backbones ranked by the accuracy of centred class means on the target's features."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn

from nc_callbacks.data.loader import own_loaders
from nc_callbacks.distributed import FailedElsewhereError, Ranks
from nc_callbacks.functional import nc1, near_optimality
from nc_callbacks.probe import class_indices, default_batch_fn, undisturbed
from nc_callbacks.statistics import ClassMoments, ClassStatistics
from nc_callbacks.transfer.features import BatchFn, check_backbone, device_of, feature_batches, labelled_rows
from nc_callbacks.transfer.head import CentredMeanHead

Rows = tuple[Float[Tensor, "n p"], Int[Tensor, " n"]]


@dataclass(frozen=True)
class SourceScore:
    """How well a backbone's features suit a target."""

    name: str
    cm_accuracy: float
    """Test accuracy of the centred class means, a share; NaN where the backbone failed."""
    nc1: float
    """tr(Σ_W Σ_B⁺)/k of the training features; smaller is more collapsed."""
    mu_ratio: float
    """mu2/mu1 of the training features' class means; near 0 for orthogonal ones."""
    seconds: float
    """Of the pass, without the making of the backbone."""
    error: str = ""
    """The error; empty where there was none."""


def rank_sources(
    backbones: Mapping[str, nn.Module | Callable[[], nn.Module]],
    loader: Any,
    num_classes: int,
    test_loader: Any = None,
    holdout: float = 0.2,
    batch_fn: BatchFn | None = None,
    ignore_index: int | None = None,
) -> list[SourceScore]:
    """Backbones by the accuracy of centred class means, best first: no training, one pass over the data each.

    The source selection of Seddik & Tamaazousti (2022, «Consequences for Transfer Learning»). Each backbone runs on its
    own device in eval mode and without gradients, and is left as it was. One that fails is a row with NaN and the
    error, at the end. Where torch.distributed is initialised, the ranks share the data, and all return the same
    scores: a backbone that fails on one has failed.

    Args:
        backbones: Modules from inputs to features by name, or functions that make one when its turn comes, so that not
            all are in memory at once.
        loader: The target's training data, with targets.
        num_classes: k.
        test_loader: The target's test data. Without, a random part of `loader`, the same for each backbone, is kept
            out of the class means; its features stay in memory for the pass.
        holdout: Size of that part, a share.
        batch_fn: From a batch to (inputs, targets); see `nc_callbacks.probe.default_batch_fn` for the default.
        ignore_index: Samples (or positions of a sequence) with this target are left out; None for none.

    Raises:
        ValueError: An argument is out of its range; a loader is empty or has no targets.

    Example:
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> targets = torch.arange(300) % 3
        >>> x = torch.cat([torch.eye(3)[targets], torch.rand(300, 3, generator=torch.Generator().manual_seed(0))], 1)
        >>> loader = DataLoader(TensorDataset(x, targets), batch_size=50)
        >>> keep = {name: torch.nn.Linear(6, 3, bias=False) for name in ("noise", "classes")}
        >>> for name, columns in (("noise", slice(3, 6)), ("classes", slice(0, 3))):
        ...     keep[name].weight.data = torch.eye(6)[columns]
        >>> [(score.name, score.cm_accuracy) for score in rank_sources(keep, loader, num_classes=3)][0]
        ('classes', 1.0)
    """
    if not isinstance(backbones, Mapping) or not backbones:
        raise ValueError(f"backbones must be a mapping from names to modules, not empty; got {backbones!r}.")
    if not 0 < holdout < 1:
        raise ValueError(f"holdout must be a share between 0 and 1, got {holdout}.")
    ranks = Ranks.of_world("cuda" if _by_nccl() else "cpu")
    target = _Target(loader, test_loader, num_classes, holdout, batch_fn or default_batch_fn, ignore_index)
    ranks.all_or_none(target.check)
    scores = [_score(name, backbone, target, ranks) for name, backbone in backbones.items()]
    return sorted(scores, key=lambda score: (bool(score.error), -score.cm_accuracy))


def _by_nccl() -> bool:
    return dist.is_available() and dist.is_initialized() and "nccl" in dist.get_backend()


@dataclass(frozen=True)
class _Target:
    """The data that the backbones are ranked for."""

    loader: Any
    test_loader: Any
    num_classes: int
    holdout: float
    batch_fn: BatchFn
    ignore_index: int | None

    def check(self) -> None:
        """Take a batch of each loader.

        Raises:
            ValueError: A loader is empty or has no targets.
        """
        for name, loader in {"loader": self.loader, "test_loader": self.test_loader}.items():
            if name == "loader" or loader is not None:
                batch = next(iter(own_loaders(loader)[0].loader), None)
                if batch is None:
                    raise ValueError(f"{name} is empty: it gave no batch.")
                class_indices(self.batch_fn(batch)[1], self.num_classes)

    def rows(self, backbone: nn.Module, loader: Any) -> Iterator[Rows]:
        """Features and class indices, batch by batch."""
        for features, targets in feature_batches(backbone, loader, self.batch_fn):
            yield labelled_rows(features, targets, self.num_classes, self.ignore_index)


def _score(name: str, backbone: nn.Module | Callable[[], nn.Module], target: _Target, ranks: Ranks) -> SourceScore:
    """The backbone's row, the same on all ranks."""
    start = time.perf_counter()
    try:
        module = ranks.all_or_none(lambda: _module(backbone))
        start = time.perf_counter()
        with undisturbed(module):
            moments, accuracy = _moments_and_accuracy(module, target, ranks)
        observed = moments.observed()
        assert observed.within is not None
        found = (accuracy, float(nc1(observed.within, observed.means)), float(near_optimality(moments).mu_ratio))
        error = ""
    except Exception as failure:
        found = (math.nan, math.nan, math.nan)
        elsewhere = isinstance(failure, FailedElsewhereError)
        error = ranks.first_text("" if elsewhere else f"{type(failure).__name__}: {failure}")
    return SourceScore(name, *found, time.perf_counter() - start, error)


def _module(backbone: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    module = backbone if isinstance(backbone, nn.Module) else backbone()
    check_backbone(module)
    return module


def _moments_and_accuracy(module: nn.Module, target: _Target, ranks: Ranks) -> tuple[ClassMoments, float]:
    device = device_of(module)
    statistics = ClassStatistics(target.num_classes).to(device)
    kept: list[Rows] = []

    def train() -> None:
        generator = torch.Generator().manual_seed(0)
        for features, targets in target.rows(module, target.loader):
            if target.test_loader is None:
                out = (torch.rand(len(targets), generator=generator) < target.holdout).to(features.device)
                kept.append((features[out], targets[out]))
                features, targets = features[~out], targets[~out]
            statistics.update(features, targets)

    def test() -> Tensor:
        hits = torch.zeros(2, dtype=torch.long, device=device)
        for features, targets in kept if target.test_loader is None else target.rows(module, target.test_loader):
            right = head(features.to(head.weight.dtype)).argmax(1) == targets
            hits += torch.stack([right.sum(), right.new_tensor(len(right), dtype=torch.long)])
        return hits

    ranks.all_or_none(train)
    moments = ranks.all_or_none(statistics.compute)
    head = ranks.all_or_none(lambda: CentredMeanHead.from_moments(moments))
    right, samples = ranks.sum(ranks.all_or_none(test).to(ranks.device)).tolist()
    if not samples:
        raise ValueError("No sample was held out for the test: give a test_loader, or a larger holdout.")
    return moments, right / samples
