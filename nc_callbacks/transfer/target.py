"""The data that backbones are ranked for, and the pass over it that gives all scores."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from nc_callbacks.data.loader import own_loaders
from nc_callbacks.distributed import FailedElsewhereError, Ranks
from nc_callbacks.functional import h_score, log_evidence, nc1, near_optimality, nearest_mean
from nc_callbacks.probe import class_indices
from nc_callbacks.statistics import ClassMoments, ClassStatistics
from nc_callbacks.transfer.features import SEED, BatchFn, LayerOutputs, device_of, feature_batches, labelled_rows
from nc_callbacks.transfer.forms import check_width
from nc_callbacks.transfer.head import CentredMeanHead

Rows = tuple[Float[Tensor, "n p"], Int[Tensor, " n"]]


@dataclass(frozen=True)
class Target:
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

    def rows(self, features: Tensor, targets: Any) -> Rows:
        """Features and class indices of a batch."""
        return labelled_rows(features, targets, self.num_classes, self.ignore_index)


def reason(failure: Exception, ranks: Ranks) -> str:
    """The error in one text, that of the rank where it was."""
    elsewhere = isinstance(failure, FailedElsewhereError)
    return ranks.first_text("" if elsewhere else f"{type(failure).__name__}: {failure}")


class Pass:
    """One pass of a backbone over the training data and one over the test data, for all layers."""

    def __init__(self, module: nn.Module, layers: Sequence[str], target: Target, ranks: Ranks) -> None:
        self.module, self.target, self.ranks, self.layers = module, target, ranks, layers
        device = device_of(module)
        self.outputs = LayerOutputs(module, [layer for layer in layers if layer])
        self.statistics = {layer: ClassStatistics(target.num_classes).to(device) for layer in layers}
        self.kept: dict[str, list[Rows]] = {layer: [] for layer in layers}
        self.hits = {layer: torch.zeros(4, dtype=torch.long, device=device) for layer in layers}
        self.samples: tuple[int, int] | None = None
        """Training and test samples of a layer without errors."""
        self.failed: dict[str, Exception] = {layer: ValueError(reason) for layer, reason in self.outputs.absent.items()}

    def scores(self) -> dict[str, dict[str, float] | str]:
        """By layer; a text is what went wrong there.

        Raises:
            Exception: What went wrong with all of them.
        """
        with self.outputs:
            self.ranks.all_or_none(self._train)
            heads: dict[str, Heads] = {}
            found: dict[str, dict[str, float] | str] = {}
            seen: dict[str, int] = {}
            for layer in self.layers:
                try:
                    self.ranks.all_or_none(partial(self._raise, layer))
                    moments = self.ranks.all_or_none(self.statistics[layer].compute)
                    seen[layer] = int(moments.counts.sum())
                    heads[layer] = self.ranks.all_or_none(partial(Heads, moments))
                    found[layer] = self.ranks.all_or_none(partial(_of_moments, moments))
                except Exception as failure:
                    found[layer] = reason(failure, self.ranks)
                    self.failed[layer] = failure
                    heads.pop(layer, None)
            self.ranks.all_or_none(lambda: self._test(heads))
        for layer, of in found.items():
            if isinstance(of, str):
                continue
            try:
                self.ranks.all_or_none(partial(self._raise, layer))
            except Exception as failure:
                found[layer] = reason(failure, self.ranks)
                continue
            *right, samples = self.ranks.sum(self.hits[layer].to(self.ranks.device)).tolist()
            if samples:
                self.samples = seen[layer], samples
                of |= {name: hits / samples for name, hits in zip(Heads.NAMES, right, strict=True)}
                if heads[layer].whitened is None:
                    of["lda_accuracy"] = math.nan
            else:
                found[layer] = (
                    "ValueError: No sample was held out for the test: give a test_loader, or a larger holdout."
                )
        return found

    def _raise(self, layer: str) -> None:
        if layer in self.failed:
            raise self.failed[layer]

    def _each(self, loader: Any, add: Callable[[str, Tensor, Any], None]) -> None:
        """Give each layer's features of each batch to a function; a layer where it fails is left out from then on."""
        for features, targets in feature_batches(self.module, loader, self.target.batch_fn):
            for layer in self.layers:
                if layer not in self.failed:
                    try:
                        add(layer, self.outputs.take(layer) if layer else features, targets)
                    except Exception as failure:
                        self.failed[layer] = failure

    def _train(self) -> None:
        generators = {layer: torch.Generator().manual_seed(SEED) for layer in self.layers}

        def add(layer: str, features: Tensor, targets: Any) -> None:
            x, y = self.target.rows(features, targets)
            check_width(x.shape[1], "A ranking", "")
            if self.target.test_loader is None:
                drawn = torch.rand(len(y), generator=generators[layer], device="cpu")
                out = (drawn < self.target.holdout).to(x.device)
                self.kept[layer].append((x[out], y[out]))
                x, y = x[~out], y[~out]
            self.statistics[layer].update(x, y)

        self._each(self.target.loader, add)

    def _test(self, heads: Mapping[str, Heads]) -> None:
        if self.target.test_loader is None:
            for layer, head in heads.items():
                for x, y in self.kept[layer]:
                    self.hits[layer] += head.hits(x, y)
            return

        def add(layer: str, features: Tensor, targets: Any) -> None:
            self.hits[layer] += heads[layer].hits(*self.target.rows(features, targets))

        self._each(self.target.test_loader, add)


class Heads:
    """Classifiers from moments: centred, nearest and whitened means; None where there is nothing to whiten by."""

    NAMES = ("cm_accuracy", "ncc_accuracy", "lda_accuracy")

    def __init__(self, moments: ClassMoments) -> None:
        self.centred = CentredMeanHead.from_moments(moments)
        self.classes = moments.present.nonzero().squeeze(1)
        self.means = moments.means[self.classes]
        self.whitened: CentredMeanHead | None = None
        try:
            with warnings.catch_warnings():
                # The other head has named the classes without samples.
                warnings.filterwarnings("ignore", "No sample has class")
                self.whitened = CentredMeanHead.from_moments(moments, whiten=True)
        except ValueError as error:
            rank_zero_warn(f"lda_accuracy is NaN: {error}")

    def hits(self, features: Float[Tensor, "n p"], targets: Int[Tensor, " n"]) -> Int[Tensor, " 4"]:
        """How many samples each gets right, and how many there are."""
        features = features.to(self.centred.weight.dtype)
        nearest = self.classes[nearest_mean(features, self.means)]
        answers = [self.centred(features).argmax(1), nearest]
        answers.append(nearest if self.whitened is None else self.whitened(features).argmax(1))
        return torch.stack([*((answer == targets).sum() for answer in answers), targets.new_tensor(len(targets))])


def _of_moments(moments: ClassMoments) -> dict[str, float]:
    observed = moments.observed()
    assert observed.within is not None
    return {
        "nc1": float(nc1(observed.within, observed.means, precision=moments.precision)),
        "mu_ratio": float(near_optimality(moments).mu_ratio),
        "logme": float(log_evidence(moments)),
        "h_score": float(h_score(moments)),
        "h_score_regularised": float(h_score(moments, regularised=True)),
    }
