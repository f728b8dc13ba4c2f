"""One look at a model: a pass over the training data (and further splits) that serves every callback at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from nc_callbacks.callbacks.observation import ClassifierObservation, Needs, Observation, Source
from nc_callbacks.callbacks.progress import progress
from nc_callbacks.functional import centred_mean_weight, nearest_mean
from nc_callbacks.loader import RankBatches, own_loader
from nc_callbacks.probe import Batch, Tap, default_batch_fn, find_head, undisturbed
from nc_callbacks.statistics import (
    ClassMoments,
    ClassStatistics,
    OutputErrors,
    SoftmaxStatistics,
    wide_dtype,
)

MAX_FEATURES = 32_768
"""A layer with more features would need more than 4 GiB for its p × p covariance."""


@dataclass
class Look:
    """Passes over a trainer's data with the model standing still.

    Args:
        trainer: The trainer.
        model: Its LightningModule.
        source: Where to find the features.
        needs: What to gather.
        cache_bytes: Budget of the feature cache. What needs the final class means is computed from it; where the
            features do not fit, in a second pass.
        head: Dotted name of the classifier, once `check` has found it.
    """

    trainer: Trainer
    model: LightningModule
    source: Source
    needs: Needs
    cache_bytes: int = 512 * 2**20
    head: str = ""

    def check(self, loaders: dict[str, Any]) -> str:
        """Try one batch of each loader: everything that can be wrong with the set-up is raised here.

        Args:
            loaders: Loaders by split, ``"train"`` first.

        Returns:
            The dotted name of the classifier.

        Raises:
            ValueError: No classifier, a layer that is not there or does not run, a batch that cannot be read, targets
                out of range, an empty loader, an out-of-distribution batch that the model cannot take.
        """
        if self.source.forward_fn is None and not is_overridden("forward", self.model):
            raise ValueError(
                f"{type(self.model).__name__} has no forward method. Define one from inputs to outputs, or pass "
                "forward_fn=..., such as lambda module, inputs: module.net(inputs)."
            )
        with self._standing_still():
            shapes = {split: self._check_split(split, loader) for split, loader in loaders.items()}
            if self.needs.ood_loader is not None:
                self._check_ood(shapes["train"])
        return self.head

    def _check_split(self, split: str, loader: Any) -> tuple[int, ...]:
        # A dataset that opens files when first read must not open them here, for workers to inherit.
        own, _ = own_loader(loader, workers=min(getattr(loader, "num_workers", 0), 1))
        raw = next(iter(own), None)
        if raw is None:
            raise ValueError(f"The {split} loader is empty: it gave no batch.")
        inputs, targets = self._inputs_and_targets(raw)
        if not self.head:
            self.head = self.source.head or find_head(self.model, lambda: self._forward(inputs))
        with self._tap() as tap:
            self._forward(inputs)
            batch = tap.read(targets)
        for name, features in batch.features.items():
            covariance = self.needs.covariance if name == self.head else self.needs.layer_covariance
            if features.shape[1] > MAX_FEATURES and covariance != "none":
                raise ValueError(
                    f"Layer {name!r} has {features.shape[1]} features, and its within-class covariance has as many "
                    f'rows and columns ({features.shape[1] ** 2 * 4 / 2**30:.0f} GiB). Watch it with pool="mean", or '
                    "watch a later layer."
                )
        ClassStatistics(len(tap.weight), covariance="none").update(
            batch.features[self.head].float().cpu(), batch.targets.cpu()
        )
        if split == "train" and self.needs.samples:
            samples = len(own.dataset) if isinstance(getattr(own, "batch_sampler", None), RankBatches) else 0
            if not all(0 <= index < samples for index in self.needs.samples):
                raise ValueError(
                    f"samples must be indices of the training set, which has {samples} samples with an index; got "
                    f"{list(self.needs.samples)}."
                )
        return tuple(getattr(inputs, "shape", ()))

    def _check_ood(self, trained_on: tuple[int, ...]) -> None:
        own, _ = own_loader(self.needs.ood_loader, workers=min(getattr(self.needs.ood_loader, "num_workers", 0), 1))
        raw = next(iter(own), None)
        if raw is None:
            raise ValueError("The out-of-distribution loader is empty: it gave no batch.")
        inputs = self._ood_inputs(raw)
        try:
            with self._tap() as tap:
                self._forward(inputs)
                tap.read_features()
        except Exception as error:
            raise ValueError(
                f"The model cannot take the out-of-distribution batch of shape {tuple(getattr(inputs, 'shape', ()))}; "
                f"it trains on batches of shape {trained_on}. Give both the same image shape. ({error})"
            ) from error

    def run(self, train: Any, others: dict[str, Any]) -> dict[str, dict[str, Observation]]:
        """Pass over the training loader, then over the others.

        Args:
            train: The training loader.
            others: Further loaders by split.

        Returns:
            Observations by split (``"train"`` first) and layer; the classifier is the first layer.

        Raises:
            ValueError: As in `check`, for a later batch.
        """
        with self._standing_still(), self._tap() as tap:
            ood_means = self._ood_means(tap)
            gathered, decisions = self._look_at_train(tap, train)
            observations = {"train": self._observed(tap, "train", gathered, decisions, ood_means)}
            for split, loader in others.items():
                gathered, decisions = _Gathered(self, tap), decisions.restarted()
                for batch, _ in self._batches(tap, split, loader):
                    gathered.update(batch)
                    decisions.update(batch)
                observations[split] = self._observed(tap, split, gathered, decisions, ood_means)
        return observations

    def _look_at_train(self, tap: Tap, loader: Any) -> tuple[_Gathered, _Decisions]:
        gathered, room = _Gathered(self, tap), self.cache_bytes
        cache: list[Batch] | None = []
        for batch, positions in self._batches(tap, "train", loader):
            gathered.update(batch)
            gathered.keep_samples(batch, positions)
            if cache is not None:
                room -= sum(tensor.nbytes for tensor in (*batch.features.values(), batch.outputs))
                cache.append(batch)
                cache = cache if room >= 0 else None
        decisions = _Decisions(self.head, gathered.moments())
        # Where one rank's cache overflowed, all ranks make the second pass.
        if not self.trainer.strategy.reduce_boolean_decision(cache is not None, all=True):
            cache = None
        if cache is None:
            for batch, _ in self._batches(tap, "train (class means)", loader):
                decisions.update(batch)
        else:
            for batch in cache:
                decisions.update(batch)
        return gathered, decisions

    def _observed(
        self, tap: Tap, split: str, gathered: _Gathered, decisions: _Decisions, ood_means: dict[str, Tensor]
    ) -> dict[str, Observation]:
        shares = decisions.shares(self.trainer)
        observations = {
            layer: Observation(split, layer, moments, shares[f"nearest {layer}"], ood_mean=ood_means.get(layer))
            for layer, moments in gathered.moments().items()
        }
        classifier = ClassifierObservation(
            weight=tap.weight.clone(),
            bias=None if tap.bias is None else tap.bias.clone(),
            accuracy=shares["accuracy"],
            mismatch=shares["mismatch"],
            centred_mean_accuracy=shares["centred means"],
            errors={kind: errors.compute() for kind, errors in gathered.errors.items()},
            expectations=None if gathered.softmax is None else gathered.softmax.compute(),
            samples=gathered.reduced_samples(self.trainer) if split == "train" else None,
        )
        observations[self.head] = replace(observations[self.head], classifier=classifier)
        return observations

    def _ood_means(self, tap: Tap) -> dict[str, Tensor]:
        """Feature means of the out-of-distribution data by layer."""
        if self.needs.ood_loader is None:
            return {}
        sums: dict[str, Tensor] = {}
        samples = torch.zeros((), dtype=wide_dtype(self.model.device), device=self.model.device)
        for raw in self._raw_batches("out of distribution", self.needs.ood_loader):
            self._forward(self._ood_inputs(raw.batch))
            features = tap.read_features()
            if raw.counts:
                samples += len(features[self.head])
                for layer, rows in features.items():
                    total = rows.sum(0, dtype=samples.dtype)
                    sums[layer] = sums[layer] + total if layer in sums else total
        reduce = self.trainer.strategy.reduce
        samples = reduce(samples, reduce_op="sum")
        return {layer: reduce(total, reduce_op="sum") / samples for layer, total in sums.items()}

    def _tap(self) -> Tap:
        return Tap(self.model, self.head, self.needs.layers, self.source.pool)

    def _batches(self, tap: Tap, split: str, loader: Any) -> Iterator[tuple[Batch, Sequence[int] | None]]:
        """Batches that count, with their samples' indices in the dataset where these are known."""
        for raw in self._raw_batches(split, loader):
            inputs, targets = self._inputs_and_targets(raw.batch)
            self._forward(inputs)
            batch = tap.read(targets)
            if raw.counts:
                yield batch, raw.indices

    def _raw_batches(self, split: str, loader: Any) -> Iterator[_Raw]:
        """This rank's batches; all ranks have equally many, some of which may not count."""
        trainer = self.trainer
        own, counted = own_loader(loader, trainer.global_rank, trainer.world_size)
        sampler = getattr(own, "batch_sampler", None)
        limit = _limit(trainer, split)
        with progress(trainer, f"Neural collapse: {split}", min(_length(own), limit)) as advance:
            for number, batch in enumerate(own):
                if number >= limit:
                    break
                counts = counted is None or number < counted
                indices = sampler.indices_of(number) if isinstance(sampler, RankBatches) else None
                yield _Raw(batch, counts, indices)
                advance()

    def _inputs_and_targets(self, raw: Any) -> tuple[Any, Any]:
        return (self.source.batch_fn or default_batch_fn)(self._on_device(raw))

    def _ood_inputs(self, raw: Any) -> Any:
        batch = self._on_device(raw)
        return batch if isinstance(batch, Tensor) else (self.source.batch_fn or default_batch_fn)(batch)[0]

    def _on_device(self, raw: Any) -> Any:
        strategy = self.trainer.strategy
        batch = strategy.precision_plugin.convert_input(raw)
        batch = self.model._on_before_batch_transfer(batch, dataloader_idx=0)
        return strategy.batch_to_device(batch, dataloader_idx=0)

    def _forward(self, inputs: Any) -> Any:
        with self.trainer.strategy.precision_plugin.val_step_context():
            if self.source.forward_fn is not None:
                return self.source.forward_fn(self.model, inputs)
            return self.model(inputs)

    @contextmanager
    def _standing_still(self) -> Iterator[None]:
        stage = self.trainer.state.stage
        with undisturbed(self.model):
            # Hooks such as on_after_batch_transfer augment where trainer.training is set.
            self.trainer.state.stage = RunningStage.VALIDATING
            try:
                yield
            finally:
                self.trainer.state.stage = stage


@dataclass(frozen=True)
class _Raw:
    """A batch as the loader gave it."""

    batch: Any
    counts: bool
    indices: Sequence[int] | None


class _Gathered:
    """The statistics of one split, batch by batch."""

    def __init__(self, look: Look, tap: Tap) -> None:
        k, needs, device = len(tap.weight), look.needs, look.model.device
        self.head = look.head
        self.statistics = {
            layer: ClassStatistics(k, covariance=needs.covariance if layer == look.head else needs.layer_covariance).to(
                device
            )
            for layer in tap.modules
        }
        self.errors = {kind: OutputErrors(k, kind).to(device) for kind in sorted(needs.errors)}
        self.softmax = SoftmaxStatistics(k).to(device) if needs.softmax else None
        self.rows = {index: row for row, index in enumerate(needs.samples)}
        # Index + 1, label, outputs; a row stays 0 where another rank meets the sample.
        self.samples = torch.zeros(len(self.rows), 2 + k, dtype=wide_dtype(device), device=device)

    def update(self, batch: Batch) -> None:
        for layer, statistics in self.statistics.items():
            statistics.update(batch.features[layer], batch.targets)
        for errors in self.errors.values():
            errors.update(batch.outputs, batch.targets)
        if self.softmax is not None:
            self.softmax.update(batch.outputs, batch.targets)

    def moments(self) -> dict[str, ClassMoments]:
        return {layer: statistics.compute() for layer, statistics in self.statistics.items()}

    def keep_samples(self, batch: Batch, indices: Sequence[int] | None) -> None:
        """Keep the outputs of the chosen samples that are in the batch."""
        if not self.rows or indices is None or len(indices) != len(batch.targets):
            return
        for place, index in enumerate(indices):
            if (row := self.rows.get(index)) is not None:
                self.samples[row, 0] = index + 1
                self.samples[row, 1] = batch.targets[place]
                self.samples[row, 2:] = batch.outputs[place]

    def reduced_samples(self, trainer: Trainer) -> Tensor | None:
        """The chosen samples that some rank has met."""
        if not self.rows:
            return None
        rows = trainer.strategy.reduce(self.samples, reduce_op="sum")
        rows = rows[rows[:, 0] > 0]
        return torch.cat([rows[:, :1] - 1, rows[:, 1:]], 1)


class _Decisions:
    """How often classifier, nearest class mean and centred class means are right; class means of the training split."""

    def __init__(self, head: str, moments: dict[str, ClassMoments]) -> None:
        self.head = head
        # A class without training samples, or with features that are not finite, has no mean to be near to.
        self.classes = {layer: m.means.isfinite().all(1).nonzero().squeeze(1) for layer, m in moments.items()}
        self.means = {layer: m.means[self.classes[layer]] for layer, m in moments.items()}
        names = ("samples", "accuracy", "mismatch", "centred means", *(f"nearest {layer}" for layer in moments))
        self.counts = {name: self.classes[head].new_zeros(()) for name in names}

    def restarted(self) -> _Decisions:
        """The same class means, for another split."""
        other = _Decisions.__new__(_Decisions)
        other.head, other.classes, other.means = self.head, self.classes, self.means
        other.counts = {name: torch.zeros_like(count) for name, count in self.counts.items()}
        return other

    def update(self, batch: Batch) -> None:
        outputs, targets = batch.outputs, batch.targets
        self.counts["samples"] += len(targets)
        self.counts["accuracy"] += (outputs.argmax(1) == targets).sum()
        for layer, rows in batch.features.items():
            classes, means = self.classes[layer], self.means[layer]
            if len(classes) < 2:
                continue
            nearest = classes[nearest_mean(rows, means)]
            self.counts[f"nearest {layer}"] += (nearest == targets).sum()
            if layer == self.head:
                # Classes without training samples take no part on either side.
                self.counts["mismatch"] += (nearest != classes[outputs[:, classes].argmax(1)]).sum()
                logits = rows.to(means.dtype) @ centred_mean_weight(means, "none").T
                self.counts["centred means"] += (classes[logits.argmax(1)] == targets).sum()

    def shares(self, trainer: Trainer) -> dict[str, float]:
        """Shares of all ranks' samples."""
        totals = trainer.strategy.reduce(torch.stack(list(self.counts.values())), reduce_op="sum").tolist()
        named = dict(zip(self.counts, totals, strict=True))
        return {name: count / max(named["samples"], 1) for name, count in named.items()}


def _limit(trainer: Trainer, split: str) -> float:
    """Batches that the trainer's own limits (`limit_train_batches`, `fast_dev_run`, …) allow."""

    def unlimited(limit: int | float | None) -> bool:
        # The integer 1 means one batch, the float 1.0 all of them.
        return limit is None or (isinstance(limit, float) and limit == 1)

    if split == "val":
        return math.inf if unlimited(trainer.limit_val_batches) else min(trainer.num_val_batches, default=0)
    if not split.startswith("train"):
        return math.inf
    whole = unlimited(trainer.limit_train_batches) and not trainer.overfit_batches  # type: ignore[attr-defined]
    return math.inf if whole else trainer.num_training_batches


def _length(loader: Any) -> float:
    try:
        return len(loader)
    except TypeError:
        return math.inf
