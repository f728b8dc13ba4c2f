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
from nc_callbacks.functional import nc1, near_optimality
from nc_callbacks.probe import class_indices, default_batch_fn, undisturbed
from nc_callbacks.statistics import ClassMoments, ClassStatistics
from nc_callbacks.transfer.features import BatchFn, as_rows, check_backbone, device_of, feature_batches
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
    """What went wrong; empty where nothing did."""


def rank_sources(
    backbones: Mapping[str, nn.Module | Callable[[], nn.Module]],
    loader: Any,
    num_classes: int,
    test_loader: Any = None,
    holdout: float = 0.2,
    batch_fn: BatchFn | None = None,
) -> list[SourceScore]:
    """Backbones by the accuracy of centred class means, best first: no training, one pass over the data each.

    The source selection of Seddik & Tamaazousti (2022, «Consequences for Transfer Learning»). Each backbone runs on its
    own device in eval mode and without gradients, and is left as it was. One that fails is a row with NaN and the
    error, at the end. Where torch.distributed is initialised, the ranks share the data.

    Args:
        backbones: Modules from inputs to features by name, or functions that make one when its turn comes, so that not
            all are in memory at once.
        loader: The target's training data, with targets.
        num_classes: k.
        test_loader: The target's test data. Without, a random part of `loader`, the same for each backbone, is kept
            out of the class means; its features stay in memory for the pass.
        holdout: Size of that part, a share.
        batch_fn: From a batch to (inputs, targets); see `nc_callbacks.probe.default_batch_fn` for the default.

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
    for name, data in {"loader": loader, "test_loader": test_loader}.items():
        if name == "loader" or data is not None:
            _check_loader(name, data, num_classes, batch_fn or default_batch_fn)
    scores = []
    for name, backbone in backbones.items():
        start = time.perf_counter()
        try:
            module = backbone if isinstance(backbone, nn.Module) else backbone()
            check_backbone(module)
            start = time.perf_counter()
            with undisturbed(module):
                train = _batches(module, loader, num_classes, batch_fn)
                test = None if test_loader is None else _batches(module, test_loader, num_classes, batch_fn)
                moments, accuracy = _moments_and_accuracy(train, test, num_classes, holdout, device_of(module))
            observed = moments.observed()
            assert observed.within is not None
            found = (
                accuracy,
                float(nc1(observed.within, observed.means, precision=moments.precision)),
                float(near_optimality(moments).mu_ratio),
            )
            scores.append(SourceScore(name, *found, time.perf_counter() - start))
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            scores.append(SourceScore(name, math.nan, math.nan, math.nan, time.perf_counter() - start, message))
    return sorted(scores, key=lambda score: (bool(score.error), -score.cm_accuracy))


def _check_loader(name: str, loader: Any, num_classes: int, batch_fn: BatchFn) -> None:
    batch = next(iter(own_loaders(loader)[0].loader), None)
    if batch is None:
        raise ValueError(f"{name} is empty: it gave no batch.")
    class_indices(batch_fn(batch)[1], num_classes)


def _batches(backbone: nn.Module, loader: Any, num_classes: int, batch_fn: BatchFn | None) -> Iterator[Rows]:
    for features, targets in feature_batches(backbone, loader, batch_fn):
        yield as_rows(features, class_indices(targets, num_classes))


def _moments_and_accuracy(
    train: Iterator[Rows], test: Iterator[Rows] | None, num_classes: int, holdout: float, device: torch.device
) -> tuple[ClassMoments, float]:
    statistics = ClassStatistics(num_classes).to(device)
    kept: list[Rows] = []
    generator = torch.Generator().manual_seed(0)
    for features, targets in train:
        if test is None:
            out = (torch.rand(len(targets), generator=generator) < holdout).to(features.device)
            kept.append((features[out], targets[out]))
            features, targets = features[~out], targets[~out]
        statistics.update(features, targets)
    moments = statistics.compute()
    head = CentredMeanHead.from_moments(moments)
    hits = torch.zeros(2, dtype=torch.long, device=device)
    for features, targets in kept if test is None else test:
        right = head(features.to(head.weight.dtype)).argmax(1) == targets
        hits += torch.stack([right.sum(), right.new_tensor(len(right), dtype=torch.long)])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(hits)
    right, samples = hits.tolist()
    if not samples:
        raise ValueError("No sample was held out for the test: give a test_loader, or a larger holdout.")
    return moments, right / samples
