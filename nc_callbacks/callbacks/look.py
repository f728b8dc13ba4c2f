"""One look at a model: a pass over the training data (and further splits) that serves every callback at once."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.trainer.states import RunningStage
from torch import Tensor

from nc_callbacks.functional import nearest_mean
from nc_callbacks.probe import Batch, Pool, Tap, default_batch_fn, find_head, own_loader, undisturbed
from nc_callbacks.statistics import ClassMoments, ClassStatistics, Covariance

MAX_FEATURES = 32_768
"""A layer with more features would need more than 4 GiB for its p × p covariance."""


@dataclass(frozen=True)
class Source:
    """Where a look finds its features; callbacks that agree on it share one pass."""

    head: str | None = None
    layers: tuple[str, ...] = ()
    pool: Pool = None
    batch_fn: Callable[[Any], tuple[Any, Any]] | None = None
    forward_fn: Callable[[LightningModule, Any], Any] | None = None


@dataclass(frozen=True)
class Observation:
    """What a look found at one layer on one split."""

    split: str
    layer: str
    moments: ClassMoments
    """Moments of this split's features; classes without samples have NaN rows."""
    nearest_mean_accuracy: float
    """Share of samples whose nearest class mean (of the training split) is their own."""
    weight: Float[Tensor, "k p"] | None = None
    """W, at the classifier only."""
    bias: Float[Tensor, " k"] | None = None
    """b, at the classifier only, or None."""
    accuracy: float | None = None
    """Accuracy of the classifier, at the classifier only."""
    mismatch: float | None = None
    """Share of samples where classifier and nearest class mean (of the training split) disagree; classifier only."""


@dataclass
class _Tally:
    """Sample counts of one split: all, right by the classifier, and layer by layer by the nearest class mean."""

    samples: Tensor
    right: Tensor
    nearest_right: dict[str, Tensor]
    mismatches: Tensor

    @classmethod
    def start(cls, layers: Sequence[str], device: torch.device) -> _Tally:
        def zero() -> Tensor:
            return torch.zeros((), dtype=torch.long, device=device)

        return cls(zero(), zero(), {layer: zero() for layer in layers}, zero())

    def reduced(self, trainer: Trainer) -> _Tally:
        """Summed over ranks."""
        flat = torch.stack([self.samples, self.right, self.mismatches, *self.nearest_right.values()])
        flat = trainer.strategy.reduce(flat, reduce_op="sum")
        return _Tally(flat[0], flat[1], dict(zip(self.nearest_right, flat[3:], strict=True)), flat[2])


@dataclass
class _Kept:
    """A batch in the feature cache."""

    features: dict[str, Tensor]
    predictions: Int[Tensor, " n"]
    targets: Int[Tensor, " n"]


@dataclass(frozen=True)
class _TrainMeans:
    """Class means of the training split; a class without training samples has no mean to be near to."""

    present: Tensor
    classes: Tensor

    @classmethod
    def of(cls, moments: ClassMoments) -> _TrainMeans:
        classes = moments.means.isfinite().all(1).nonzero().squeeze(1)
        return cls(moments.means[classes], classes)


@dataclass
class Look:
    """Passes over a trainer's data with the model standing still.

    Args:
        trainer: The trainer.
        model: Its LightningModule.
        source: Where to find the features.
        covariance: What `ClassStatistics` gather.
        cache_bytes: Budget of the feature cache. What needs the final class means is computed from it; where the
            features do not fit, in a second pass.
        head: Dotted name of the classifier, once `check` has found it.
    """

    trainer: Trainer
    model: LightningModule
    source: Source
    covariance: Covariance = "pooled"
    cache_bytes: int = 512 * 2**20
    head: str = ""

    def check(self, loaders: dict[str, Any]) -> str:
        """Try one batch of each loader: everything that can be wrong with the set-up is raised here.

        Returns:
            The dotted name of the classifier.

        Raises:
            ValueError: No classifier, a layer that is not there or does not run, a batch that cannot be read, targets
                out of range, an empty loader.
        """
        with self._standing_still():
            for split, loader in loaders.items():
                self._check_split(split, loader)
        return self.head

    def _check_split(self, split: str, loader: Any) -> None:
        own, _ = own_loader(loader, workers=0)
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
                if features.shape[1] > MAX_FEATURES and self.covariance != "none":
                    raise ValueError(
                        f"Layer {name!r} has {features.shape[1]} features, and its within-class covariance has as "
                        f"many rows and columns ({features.shape[1] ** 2 * 4 / 2**30:.0f} GiB). Watch it with "
                        'pool="mean", or watch a later layer.'
                    )
                self._statistics(len(tap.weight), "none").update(features, batch.targets)

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
            observations = {"train": self._look_at_train(tap, train)}
            means = {layer: _TrainMeans.of(seen.moments) for layer, seen in observations["train"].items()}
            for split, loader in others.items():
                observations[split] = self._look_at(tap, split, loader, means)
        return observations

    def _look_at_train(self, tap: Tap, loader: Any) -> dict[str, Observation]:
        statistics = {layer: self._statistics(len(tap.weight)) for layer in tap.modules}
        cache: list[_Kept] | None = []
        room = self.cache_bytes
        for batch in self._batches(tap, "train", loader):
            for layer, statistic in statistics.items():
                statistic.update(batch.features[layer], batch.targets)
            if cache is not None:
                room -= sum(features.nbytes for features in batch.features.values())
                cache.append(_Kept(batch.features, batch.outputs.argmax(1), batch.targets))
                cache = cache if room >= 0 else None
        moments = {layer: statistic.compute() for layer, statistic in statistics.items()}
        means = {layer: _TrainMeans.of(moment) for layer, moment in moments.items()}
        tally = _Tally.start(list(tap.modules), self.model.device)
        # Where one rank's cache overflowed, all ranks make the second pass.
        if not self.trainer.strategy.reduce_boolean_decision(cache is not None, all=True):
            cache = None
            again = self._batches(tap, "train (class means)", loader)
            kept: Any = (_Kept(batch.features, batch.outputs.argmax(1), batch.targets) for batch in again)
        else:
            kept = cache
        for item in kept:
            _count(tally, item, means, self.head)
        return self._observed(tap, "train", moments, tally)

    def _look_at(self, tap: Tap, split: str, loader: Any, means: dict[str, _TrainMeans]) -> dict[str, Observation]:
        statistics = {layer: self._statistics(len(tap.weight)) for layer in tap.modules}
        tally = _Tally.start(list(tap.modules), self.model.device)
        for batch in self._batches(tap, split, loader):
            for layer, statistic in statistics.items():
                statistic.update(batch.features[layer], batch.targets)
            _count(tally, _Kept(batch.features, batch.outputs.argmax(1), batch.targets), means, self.head)
        return self._observed(tap, split, {name: s.compute() for name, s in statistics.items()}, tally)

    def _observed(
        self, tap: Tap, split: str, moments: dict[str, ClassMoments], tally: _Tally
    ) -> dict[str, Observation]:
        total = tally.reduced(self.trainer)
        n = max(int(total.samples), 1)
        observations = {
            layer: Observation(split, layer, moments[layer], int(right) / n)
            for layer, right in total.nearest_right.items()
        }
        observations[self.head] = replace(
            observations[self.head],
            weight=tap.weight.clone(),
            bias=None if tap.bias is None else tap.bias.clone(),
            accuracy=int(total.right) / n,
            mismatch=int(total.mismatches) / n,
        )
        return observations

    def _statistics(self, num_classes: int, covariance: Covariance | None = None) -> ClassStatistics:
        return ClassStatistics(num_classes, covariance=covariance or self.covariance).to(self.model.device)

    def _tap(self) -> Tap:
        return Tap(self.model, self.head, self.source.layers, self.source.pool)

    def _batches(self, tap: Tap, split: str, loader: Any) -> Iterator[Batch]:
        trainer = self.trainer
        own, counted = own_loader(loader, trainer.global_rank, trainer.world_size)
        limit = _limit(trainer, split)
        total = min(_length(own), limit)
        with progress(trainer, f"Neural collapse: {split}", total) as advance:
            for index, raw in enumerate(own):
                if index >= limit:
                    break
                inputs, targets = self._inputs_and_targets(raw)
                self._forward(inputs)
                batch = tap.read(targets)
                if counted is None or index < counted:
                    yield batch
                advance()

    def _inputs_and_targets(self, raw: Any) -> tuple[Any, Any]:
        strategy, model = self.trainer.strategy, self.model
        batch = strategy.precision_plugin.convert_input(raw)
        batch = model._on_before_batch_transfer(batch, dataloader_idx=0)
        batch = strategy.batch_to_device(batch, dataloader_idx=0)
        return (self.source.batch_fn or default_batch_fn)(batch)

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


def _count(tally: _Tally, batch: _Kept, means: dict[str, _TrainMeans], head: str) -> None:
    """Add a batch to the tally: who is right, the classifier or the nearest class mean, and where they differ."""
    tally.samples += len(batch.targets)
    tally.right += (batch.predictions == batch.targets).sum()
    for layer, features in batch.features.items():
        if len(means[layer].classes) < 2:
            continue
        nearest = means[layer].classes[nearest_mean(features, means[layer].present)]
        tally.nearest_right[layer] += (nearest == batch.targets).sum()
        if layer == head:
            tally.mismatches += (nearest != batch.predictions).sum()


def _limit(trainer: Trainer, split: str) -> float:
    """Batches that the trainer's own limits (`limit_train_batches`, `fast_dev_run`, …) allow."""

    def unlimited(limit: int | float | None) -> bool:
        # The integer 1 means one batch, the float 1.0 all of them.
        return limit is None or (isinstance(limit, float) and limit == 1)

    if split == "val":
        return math.inf if unlimited(trainer.limit_val_batches) else min(trainer.num_val_batches, default=0)
    whole = unlimited(trainer.limit_train_batches) and not trainer.overfit_batches  # type: ignore[attr-defined]
    return math.inf if whole else trainer.num_training_batches


def _length(loader: Any) -> float:
    try:
        return len(loader)
    except TypeError:
        return math.inf


@contextmanager
def progress(trainer: Trainer, description: str, total: float) -> Iterator[Callable[[], Any]]:
    """A bar for the pass in the style of the trainer's own; none where the trainer shows none."""
    bar = trainer.progress_bar_callback
    if isinstance(bar, RichProgressBar) and bar.is_enabled and bar.progress is not None:
        task = bar._add_task(total, description)

        def advance() -> None:
            assert bar.progress is not None
            bar.progress.advance(task)
            bar.refresh()

        try:
            yield advance
        finally:
            bar.progress.remove_task(task)
            bar.refresh()
    elif isinstance(bar, TQDMProgressBar) and bar.is_enabled and trainer.is_global_zero:
        steps = int(total) if total != math.inf else None
        place = 2 * bar.process_position + 1
        with Tqdm(
            desc=description, total=steps, leave=False, position=place, dynamic_ncols=True, file=sys.stdout
        ) as ticks:
            yield ticks.update
    else:
        yield lambda: None
