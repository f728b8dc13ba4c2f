"""Everything that a look refuses, on a batch that is tried before training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from nc_callbacks import probe
from nc_callbacks.data.loader import OwnLoader, own_loaders, single_loaders
from nc_callbacks.engine.limits import len_of
from nc_callbacks.engine.machine import said_of_memory
from nc_callbacks.engine.outside import named_loaders
from nc_callbacks.engine.passes import Passes
from nc_callbacks.engine.request import Needs, Source
from nc_callbacks.engine.trainer import makes_layers_later, overrides
from nc_callbacks.engine.work import Work, now
from nc_callbacks.probe import Batch, Head, Tap
from nc_callbacks.probe.names import listed
from nc_callbacks.probe.positions import first_samples, size_of
from nc_callbacks.statistics import ClassStatistics

MAX_FEATURES = 32_768
"""A layer with more features would need more than 4 GiB for its p × p covariance."""

_OTHERS = 1e-2
"""Share by which features of samples differ that depend on others; those that do not differ by rounding alone."""

_TRIED = 10
"""Batches among which one with targets is looked for."""


class Checks:
    """Tries one batch of each loader.

    Args:
        passes: How the model is run.
        needs: What a look is to gather.
        tap: Makes the hooks for a classifier.

    Attributes:
        found: What the first batch has shown of the classifier.
        features: Number of features of each layer, as they are measured.
        tried: The last batch.
        forward_time: Seconds that it took the model and its hooks.
    """

    def __init__(self, passes: Passes, needs: Needs, tap: Callable[[Head], Tap]) -> None:
        self.passes, self.needs, self.tap = passes, needs, tap
        self.found: Head | None = None
        self.features: dict[str, int] = {}
        self.tried: Batch | None = None
        self.forward_time = 0.0
        if passes.source.forward_fn is None and not overrides(passes.model, "forward"):
            raise ValueError(
                f"{type(passes.model).__name__} has no forward method. Define one from inputs to outputs, or pass "
                "forward_fn=..., such as lambda module, inputs: module.net(inputs)."
            )

    def run(self, loaders: dict[str, Any]) -> None:
        """Try loaders by split.

        Raises:
            ValueError: No classifier, a layer that is not there or does not run, a batch that cannot be read, targets
                out of range, an empty loader, an out-of-distribution batch that the model cannot take.
        """
        shapes = [self._split(split, loader) for split, loader in loaders.items()]
        for name, loader in named_loaders(self.needs.ood_loader).items():
            self._ood(name, loader, shapes[0])
        assert self.found is not None
        layers = {name: (p, self.needs.at(name, self.found.name).covariance) for name, p in self.features.items()}
        ranks, device = self.passes.ranks.size, self.passes.model.device
        if said := said_of_memory(layers, self.found.num_classes, len(loaders), ranks, device):
            self.passes.warn(said)
        if self.tried is not None and len(layers) > 1:
            batches = (
                sum(map(len_of, self.passes.own_loaders_of("train", loaders["train"]))) if "train" in loaders else 0
            )
            work = Work(self.tried, self.found, layers, len(loaders), self.passes.ranks.size, self.forward_time)
            rank_zero_info(work.said(batches, self.passes.source.max_features))

    def _split(self, split: str, loader: Any) -> tuple[int, ...]:
        shape = None
        for own in self._few_batches_of(loader):
            inputs, targets = self._first_with_targets(split, own)
            if targets is None:
                continue
            shape = tuple(getattr(inputs, "shape", ()))
            self._batch(inputs, targets)
        if shape is None:
            raise ValueError(
                f"batch_fn gives no targets for the first {_TRIED} batches of the {split} loader; expected targets for "
                "the batches that count."
            )
        if split == "train" and self.needs.samples:
            self._samples(loader)
        return shape

    def _first_with_targets(self, split: str, own: OwnLoader) -> tuple[Any, Any]:
        read = (self.passes.inputs_and_targets(raw, split) for raw in islice(own.loader, _TRIED))
        first = next(read, None)
        if first is None:
            raise ValueError(f"The {split} loader is empty: it gave no batch.")
        return next((pair for pair in chain([first], read) if pair[1] is not None), (None, None))

    def _batch(self, inputs: Any, targets: Any) -> None:
        first = self.found is None
        if self.found is None:
            self.found = self.passes.checked_head(inputs, targets, list(self.needs.layers))
            refuse_other_outputs(self.needs, self.found.name, self.found.scale, type(self.passes.model).__name__)
        started = now(self.passes.model.device)
        with self.tap(self.found) as tap:
            self.passes.forward(inputs, tap.forget)
            batch = tap.read(targets)
        if narrower := self._narrowed(batch, tap):
            self.found = narrower
            started = now(self.passes.model.device)
            with self.tap(self.found) as tap:
                self.passes.forward(inputs, tap.forget)
                batch = tap.read(targets)
        self.features = {name: rows.shape[1] for name, rows in batch.features.items()}
        self._refuse_wide(tap.head)
        self.forward_time, self.tried = now(self.passes.model.device) - started, batch
        of_one = ClassStatistics(tap.num_classes, covariance="none", ignore_index=self.passes.source.ignore_index)
        of_one.cpu().update(batch.features[tap.head].float().cpu(), batch.targets.cpu())
        first &= not (self.passes.sharded or self.passes.source.online)
        if first and self._depends_on_others(inputs, targets, batch.features[tap.head]):
            self.passes.warn(
                f"The features of a sample at {tap.head!r} depend on the other samples of its batch, as they do behind "
                "batch norm without running statistics. A look's batches are in the order of the data set, which need "
                "not be that of training: where it is sorted by class, the numbers are others. Shuffle the data set "
                "once, or let such layers keep running statistics."
            )

    def _depends_on_others(self, inputs: Any, targets: Any, features: Tensor) -> bool:
        """Whether the first half of a batch has other features when it is alone; no where that cannot be tried."""
        n = size_of(inputs)
        if targets.ndim != 1 or not len(targets) == len(features) == n > 3:
            return False
        try:
            half = self._features(first_samples(inputs, n, n // 2), targets[: n // 2])
            differ = (half - features[: n // 2]).norm() > _OTHERS * features[: n // 2].norm()
            # Where noise is drawn, no two runs are alike.
            return (
                bool(differ) and features.element_size() > 2 and torch.equal(self._features(inputs, targets), features)
            )
        except Exception:
            # Such as of a model that takes batches of one size alone.
            return False

    def _features(self, inputs: Any, targets: Any) -> Tensor:
        assert self.found is not None
        with self.tap(self.found) as tap:
            self.passes.forward(inputs, tap.forget)
            return tap.read(targets).features[tap.head]

    def _narrowed(self, batch: Batch, tap: Tap) -> Head | None:
        """The classifier with what is done about layers that are too wide; None where there is nothing to do."""
        assert self.found is not None
        limit = self.passes.source.max_features
        found, wide = self.found, {name: rows.shape[1] for name, rows in batch.features.items()}
        if limit is not None:
            projected = frozenset(name for name, p in wide.items() if p > limit and name not in found.projected)
            return replace(found, projected=found.projected | projected) if projected else None
        maps = frozenset(
            name
            for name, p in wide.items()
            if p > MAX_FEATURES
            and name not in {tap.head, *tap.averaged}
            and self.needs.at(name, tap.head).covariance != "none"
            and len(tap.shapes[name]) > 2
        )
        if not maps:
            return None
        rank_zero_info(
            f"Neural collapse: the maps of {listed(maps)} have more than {MAX_FEATURES:,} numbers and are averaged "
            "over positions; max_features=... projects them instead, which keeps distances."
        )
        return replace(found, averaged=found.averaged | maps)

    def _refuse_wide(self, head: str) -> None:
        for name, p in self.features.items():
            if p > MAX_FEATURES and self.needs.at(name, head).covariance != "none":
                raise ValueError(
                    f"Layer {name!r} has {p} features, and its within-class covariance has as many rows and columns "
                    f'({p**2 * 4 / 2**30:.0f} GiB). Watch it with pool="mean" or max_features=..., or watch a later '
                    "layer."
                )

    def _samples(self, loader: Any) -> None:
        last = self._few_batches_of(loader)[-1]
        samples = last.first_index + len(last.loader.dataset) if last.batches is not None else 0
        if not all(0 <= index < samples for index in self.needs.samples):
            raise ValueError(
                f"samples must be indices of the training set, which has {samples} samples with an index; got "
                f"{list(self.needs.samples)}."
            )

    def _ood(self, name: str, loader: Any, trained_on: tuple[int, ...]) -> None:
        what = f"out-of-distribution loader {name!r}" if name else "out-of-distribution loader"
        if name in self.needs.layers:
            raise ValueError(f"The {what} has the name of a layer that is looked at: call it something else.")
        raw = next(iter(self._few_batches_of(loader)[0].loader), None)
        if raw is None:
            raise ValueError(f"The {what} is empty: it gave no batch.")
        inputs = self.passes.inputs(raw)
        try:
            assert self.found is not None
            with self.tap(self.found) as tap:
                self.passes.forward(inputs, tap.forget)
                tap.read_features()
        except Exception as error:
            raise ValueError(
                f"The model cannot take the out-of-distribution batch of shape {tuple(getattr(inputs, 'shape', ()))}"
                f"{f' of loader {name!r}' if name else ''}; it trains on batches of "
                f"shape {trained_on}. Give both the same image shape. ({error})"
            ) from error

    def _few_batches_of(self, loader: Any) -> list[OwnLoader]:
        # A dataset that opens files when first read must not open them here, for workers to inherit.
        workers = max((getattr(single, "num_workers", 0) for single in single_loaders(loader)), default=0)
        divide = self.passes.memory.divide_batch
        return own_loaders(loader, workers=min(workers, 1), divide_batch=divide, warn=self.passes.warn)


def check_names(model: LightningModule, source: Source, layers: Sequence[str], made: bool) -> bool:
    """Refuse names that the model does not have; whether it could be known.

    A module that makes layers in `setup` or `configure_model` has none yet when the callbacks are set up.

    Args:
        model: The LightningModule.
        source: Names the classifier, or not.
        layers: Further modules.
        made: Whether all layers are made.

    Raises:
        ValueError: A name is not in the model, or the classifier cannot be one.
    """
    if not made and makes_layers_later(model):
        return False
    probe.check_names(model, source.head, layers)
    return True


def refuse_other_outputs(needs: Needs, head: str, scale: float, model: str) -> None:
    """Refuse to measure outputs that the model returns changed.

    Raises:
        ValueError: Something measures outputs, and the model multiplies the classifier's by a number, see `Head.scale`.
    """
    measured = {"quasi-interpolation": needs.errors, "ood_scores": needs.ood_scores}
    asked = [name for name, of in measured.items() if of]
    if asked and not abs(scale - 1) < 1e-3:
        how = "through a function" if math.isnan(scale) else f"times {scale:.4g}"
        raise ValueError(
            f"For {' and '.join(asked)} the outputs of {head!r} would be measured, but {model} returns them {how}. "
            "Make that a part of the classifier: a module whose forward gives the scaled outputs, named by head=..., "
            "or leave out what measures outputs."
        )
