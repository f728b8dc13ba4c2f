"""One look at a model: a pass over the training data (and further splits) that serves every callback at once."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from nc_callbacks.data.loader import OwnLoader, own_loaders, single_loaders
from nc_callbacks.distributed import is_out_of_memory
from nc_callbacks.engine.passes import Memory, Passes, Step
from nc_callbacks.engine.request import Needs, Observation, Source
from nc_callbacks.engine.split import Decisions, Gathered
from nc_callbacks.engine.trainer import overrides
from nc_callbacks.probe import Batch, Tap, find_head, undisturbed
from nc_callbacks.statistics import ClassStatistics, wide_dtype

MAX_FEATURES = 32_768
"""A layer with more features would need more than 4 GiB for its p × p covariance."""

_TRIED = 10
"""Batches among which one with targets is looked for."""

MakeLoaders = Callable[[], dict[str, Any]]

T = TypeVar("T")


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
        head: Dotted name of the classifier; `check` finds it where it is empty.
        memory: What looks may use.
        warn: Called with what a user has to know.
    """

    trainer: Trainer
    model: LightningModule
    source: Source
    needs: Needs
    cache_bytes: int = 512 * 2**20
    head: str = ""
    memory: Memory = field(default_factory=Memory)
    warn: Callable[[str], None] = rank_zero_warn

    def __post_init__(self) -> None:
        self.passes = Passes(self.trainer, self.model, self.source, self.memory, self.warn)
        self.ranks = self.passes.ranks
        self.num_classes = 0

    def check(self, make_loaders: MakeLoaders) -> None:
        """Try one batch of each loader, and set `head` and `num_classes`.

        Everything that can be wrong with the set-up is raised here.

        Args:
            make_loaders: Gives loaders by split; what it draws of random numbers is put back.

        Raises:
            ValueError: No classifier, a layer that is not there or does not run, a batch that cannot be read, targets
                out of range, an empty loader, an out-of-distribution batch that the model cannot take.
        """
        if self.source.forward_fn is None and not overrides(self.model, "forward"):
            raise ValueError(
                f"{type(self.model).__name__} has no forward method. Define one from inputs to outputs, or pass "
                "forward_fn=..., such as lambda module, inputs: module.net(inputs)."
            )

        def attempt() -> None:
            with self.standing_still(make_loaders) as loaders:
                shapes = [self._check_split(split, loader) for split, loader in loaders.items()]
                if self.needs.ood_loader is not None:
                    self._check_ood(shapes[0])

        # A sharded model's forward pass waits for the other ranks: there, an error ends the process instead.
        self._within_memory(attempt if self.passes.sharded else partial(self.ranks.together, attempt))

    def _check_split(self, split: str, loader: Any) -> tuple[int, ...]:
        shape = None
        for own in self._few_batches_of(loader):
            read = (self.passes.inputs_and_targets(raw, split) for raw in islice(own.loader, _TRIED))
            first = next(read, None)
            if first is None:
                raise ValueError(f"The {split} loader is empty: it gave no batch.")
            inputs, targets = next((pair for pair in chain([first], read) if pair[1] is not None), (None, None))
            if targets is None:
                continue
            shape = tuple(getattr(inputs, "shape", ()))
            if not self.head:
                self.head = find_head(self.model, partial(self.passes.forward, inputs))
            with self.tap() as tap:
                self.passes.forward(inputs)
                batch = tap.read(targets)
            self.num_classes = tap.num_classes
            self._check_batch(tap, batch)
        if shape is None:
            raise ValueError(
                f"batch_fn gives no targets for the first {_TRIED} batches of the {split} loader; expected targets for "
                "the batches that count."
            )
        if split == "train" and self.needs.samples:
            self._check_samples(loader)
        return shape

    def _check_batch(self, tap: Tap, batch: Batch) -> None:
        for name, features in batch.features.items():
            covariance = self.needs.covariance if name == self.head else self.needs.layer_covariance
            if features.shape[1] > MAX_FEATURES and covariance != "none":
                raise ValueError(
                    f"Layer {name!r} has {features.shape[1]} features, and its within-class covariance has as many "
                    f'rows and columns ({features.shape[1] ** 2 * 4 / 2**30:.0f} GiB). Watch it with pool="mean", or '
                    "watch a later layer."
                )
        ClassStatistics(tap.num_classes, covariance="none", ignore_index=self.source.ignore_index).update(
            batch.features[self.head].float().cpu(), batch.targets.cpu()
        )

    def _check_samples(self, loader: Any) -> None:
        last = self._few_batches_of(loader)[-1]
        samples = last.first_index + len(last.loader.dataset) if last.batches is not None else 0
        if not all(0 <= index < samples for index in self.needs.samples):
            raise ValueError(
                f"samples must be indices of the training set, which has {samples} samples with an index; got "
                f"{list(self.needs.samples)}."
            )

    def _check_ood(self, trained_on: tuple[int, ...]) -> None:
        raw = next(iter(self._few_batches_of(self.needs.ood_loader)[0].loader), None)
        if raw is None:
            raise ValueError("The out-of-distribution loader is empty: it gave no batch.")
        inputs = self.passes.inputs(raw)
        try:
            with self.tap() as tap:
                self.passes.forward(inputs)
                tap.read_features()
        except Exception as error:
            raise ValueError(
                f"The model cannot take the out-of-distribution batch of shape {tuple(getattr(inputs, 'shape', ()))}; "
                f"it trains on batches of shape {trained_on}. Give both the same image shape. ({error})"
            ) from error

    def _few_batches_of(self, loader: Any) -> list[OwnLoader]:
        # A dataset that opens files when first read must not open them here, for workers to inherit.
        workers = max((getattr(single, "num_workers", 0) for single in single_loaders(loader)), default=0)
        return own_loaders(loader, workers=min(workers, 1), divide_batch=self.memory.divide_batch, warn=self.warn)

    def run(self, make_loaders: MakeLoaders) -> dict[str, dict[str, Observation]]:
        """Pass over the loaders of a fit, or of an evaluation.

        A pass that runs out of memory is made again without the cache, then in smaller batches.

        Args:
            make_loaders: Gives loaders by split; what it draws of random numbers is put back. Nearest class means are
                those of ``"train"``; where it is missing, what needs them is None.

        Returns:
            Observations by split and layer; the classifier is the first layer.

        Raises:
            Exception: What a loader, `batch_fn` or the model raised.
            FailedElsewhereError: That happened on another rank.
            InterruptedPassError: The trainer has received SIGTERM.
        """

        def attempt() -> dict[str, dict[str, Observation]]:
            with ExitStack() as stack:
                still = self.standing_still(make_loaders)
                loaders = self.ranks.together(lambda: stack.enter_context(still))
                # What an evaluation has besides its own split may be there on some ranks only.
                if self.ranks.most(int("train" not in loaders)):
                    loaders.pop("train", None)
                return self._run(stack.enter_context(self.tap()), loaders)

        return self._within_memory(attempt)

    def _within_memory(self, attempt: Callable[[], T]) -> T:
        """Try again with less, where memory runs out."""
        while True:
            try:
                return attempt()
            except Exception as error:
                if not is_out_of_memory(error) or not self.memory.shrink():
                    raise
            # Outside the handler, whose traceback keeps the tensors of the failed attempt alive.
            gc.collect()
            if self.model.device.type == "cuda":
                torch.cuda.empty_cache()

    def _run(self, tap: Tap, loaders: dict[str, Any]) -> dict[str, dict[str, Observation]]:
        ood_means = self.ood_means(tap)
        decisions: Decisions | None = None
        observations = {}
        for split in sorted(loaders, key=lambda split: split != "train"):
            gathered = self.ranks.together(partial(self.gathered, tap, split))
            self._pass(tap, split, loaders[split], gathered.update)
            if split == "train":
                found = self.head, gathered.moments(), self.ranks, self.source.ignore_index
                decisions = self.ranks.together(partial(Decisions, *found))
            elif decisions is not None:
                decisions = decisions.restarted()
            if decisions is not None:
                self._decide(tap, split, loaders[split], gathered, decisions)
            observations[split] = gathered.observed(split, tap, decisions, ood_means)
        return observations

    def gathered(self, tap: Tap, split: str) -> Gathered:
        """Empty statistics for a split."""
        cache_bytes = self.cache_bytes if self.memory.cache else 0
        needs = self.needs if split == "train" else replace(self.needs, samples=())
        return Gathered(tap, needs, self.model.device, self.ranks, self.source.ignore_index, cache_bytes)

    def _decide(self, tap: Tap, split: str, loader: Any, gathered: Gathered, decisions: Decisions) -> None:
        # Where one rank's cache overflowed, all ranks make the second pass.
        if self.ranks.most(int(gathered.cache is None)):
            self._pass(tap, split, loader, lambda batch, _: decisions.update(batch), "class means")
        else:
            self.ranks.together(partial(decisions.update_all, gathered.cache or ()))

    def ood_means(self, tap: Tap) -> dict[str, Tensor]:
        """Feature means of the out-of-distribution data by layer."""
        if self.needs.ood_loader is None:
            return {}
        sums: dict[str, Tensor] = {}
        samples = torch.zeros((), dtype=wide_dtype(self.model.device), device=self.model.device)

        def add(step: Step) -> None:
            features = tap.read_features()
            samples.add_(len(features[self.head]))
            for layer, rows in features.items():
                total = rows.sum(0, dtype=samples.dtype)
                sums[layer] = sums[layer] + total if layer in sums else total

        def read(raw: Any) -> tuple[Any, Any]:
            return self.passes.inputs(raw), ()

        self.passes.each("out of distribution", self.needs.ood_loader, tap, add, read=read)
        return {layer: self._mean(sums.get(layer), samples) for layer in tap.modules}

    def _mean(self, total: Tensor | None, samples: Tensor) -> Tensor:
        # A rank that had no sample does not know how many features there are.
        features = self.ranks.most(0 if total is None else len(total))
        total = samples.new_zeros(features) if total is None else total
        return self.ranks.sum(total) / self.ranks.sum(samples)

    @contextmanager
    def standing_still(self, make_loaders: MakeLoaders) -> Iterator[dict[str, Any]]:
        """Give the loaders, and leave no trace on the model, the trainer and the data."""
        with undisturbed(self.model):
            loaders = make_loaders()
        ood_loader = [] if self.needs.ood_loader is None else [self.needs.ood_loader]
        with self.passes.standing_still(*loaders.values(), *ood_loader):
            yield loaders

    def tap(self) -> Tap:
        """Hooks on the classifier and the further layers."""
        return Tap(self.model, self.head, self.needs.layers, self.source.pool)

    def _pass(
        self,
        tap: Tap,
        split: str,
        loader: Any,
        use: Callable[[Batch, Sequence[int] | None], None],
        purpose: str = "",
    ) -> None:
        """One pass over a split: `use` is called with each batch that counts and the indices of its samples."""

        def read(step: Step) -> None:
            use(tap.read(step.targets), step.indices)

        self.passes.each(split, loader, tap, read, purpose)
