"""One look at a model: a pass over the training data (and further splits) that serves every callback at once."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from nc_callbacks.distributed import is_out_of_memory
from nc_callbacks.engine.buffer import Budget, Buffer, Samples
from nc_callbacks.engine.checks import Checks, refuse_other_outputs
from nc_callbacks.engine.decisions import Decisions
from nc_callbacks.engine.observation import Observations
from nc_callbacks.engine.outside import Scored, Scorer, add_scores, named_loaders
from nc_callbacks.engine.passes import Memory, Passes, Step
from nc_callbacks.engine.request import Request
from nc_callbacks.engine.split import SplitStatistics
from nc_callbacks.engine.trainer import validated_weights
from nc_callbacks.engine.verify import verified
from nc_callbacks.probe import Batch, Head, Tap, undisturbed
from nc_callbacks.statistics import wide_dtype

MakeLoaders = Callable[[], dict[str, Any]]

T = TypeVar("T")


@dataclass
class Look:
    """Passes over a trainer's data with the model standing still.

    Args:
        trainer: The trainer.
        model: Its LightningModule.
        request: What to gather, from where, within which budget. What needs the final class means is computed from the
            features that the budget can hold; where they do not fit, in a second pass.
        memory: What looks may use.
        warn: Called with what a user has to know.
        found: What `check` has found out about the classifier.
        verify: Say what the look has changed.
    """

    trainer: Trainer
    model: LightningModule
    request: Request
    memory: Memory = field(default_factory=Memory)
    warn: Callable[[str], None] = rank_zero_warn
    found: Head | None = None
    verify: bool = False

    def __post_init__(self) -> None:
        self.needs, self.source = self.request.needs, self.request.source
        self.passes = Passes(self.trainer, self.model, self.source, self.memory, self.warn)
        self.ranks = self.passes.ranks
        self.budget = Budget(self.request.cache_bytes)

    @property
    def head(self) -> str:
        """Dotted name of the classifier."""
        return self.source.head or ""

    def check(self, make_loaders: MakeLoaders) -> Head:
        """Try one batch of each loader.

        Everything that can be wrong with the set-up is raised here.

        Args:
            make_loaders: Gives loaders by split; what it draws of random numbers is put back.

        Returns:
            What was found out about the classifier.

        Raises:
            ValueError: See `Checks.run`.
        """
        checks = Checks(self.passes, self.needs, self._tap_at)

        def attempt() -> None:
            with self.standing_still(make_loaders) as loaders:
                checks.run(loaders)

        # A sharded model's forward pass waits for the other ranks: there, an error ends the process instead.
        self._within_memory(attempt if self.passes.sharded else partial(self.ranks.all_or_none, attempt))
        assert checks.found is not None
        # Ranks may find it near the limit, and what is left out is left out by all.
        head = replace(checks.found, affine=not self.ranks.any(not checks.found.affine))
        if not head.affine:
            self._say_no_weight(head.name)
        if head.name in head.projected:
            self.warn(
                f"The {head.num_features} features of the classifier {head.name!r} are projected to "
                f"max_features={self.source.max_features}, and its weight is none of theirs: what needs one is left "
                "out (nc3 and its kin, nc2_*_weights, wm_cosine*, mse_*, implicit_*)."
            )
        return head

    def _say_no_weight(self, head: str) -> None:
        self.warn(
            f"The classifier {head!r} is no affine map of its input and so has no weight: what needs one is left out "
            "(nc3 and its kin, nc2_*_weights, wm_cosine*, mse_*, implicit_*)."
        )

    def run(self, make_loaders: MakeLoaders) -> Observations:
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

        def attempt() -> Observations:
            with ExitStack() as stack:
                still = self.standing_still(make_loaders)
                loaders = self.ranks.all_or_none(lambda: stack.enter_context(still))
                if self.trainer.state.fn == "fit":
                    stack.enter_context(validated_weights(self.trainer, self.model))
                # What an evaluation has besides its own split may be there on some ranks only.
                if self.ranks.any("train" not in loaders):
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
            self.budget = Budget(self.request.cache_bytes)
            gc.collect()
            if self.model.device.type == "cuda":
                torch.cuda.empty_cache()

    def _run(self, tap: Tap, loaders: dict[str, Any]) -> Observations:
        ood_means = None if self.needs.ood_scores else self.ood_means(tap)
        decisions: Decisions | None = None
        observations = {}
        for split in sorted(loaders, key=lambda split: split != "train"):
            held = self.ranks.all_or_none(partial(self.statistics, tap, split))
            self._pass(tap, split, loaders[split], held.update)
            if split == "train":
                decisions = self.decisions(held, tap)
            elif decisions is not None:
                decisions = decisions.restarted()
            if ood_means is None:
                # Scores need the training split's moments.
                ood_means = self.ood_means(tap, decisions)
            if decisions is not None:
                self._decide(tap, split, loaders[split], held, decisions)
            observations[split] = held.observed(split, tap, decisions, ood_means)
        return observations

    def statistics(self, tap: Tap, split: str) -> SplitStatistics:
        """Empty statistics for a split."""
        needs = self.needs if split == "train" else replace(self.needs, samples=())
        budget = self.budget if self.memory.cache else None
        return SplitStatistics(tap, needs, self.model.device, self.ranks, self.source.ignore_index, budget)

    def decisions(self, training: SplitStatistics, tap: Tap) -> Decisions | None:
        """Decisions by the class means of the training split; None where nothing is asked of them."""
        if not self.needs.decisions:
            return None
        moments = training.moments()
        of_head, weight = moments[self.head], tap.weight_and_bias()[0] if self.needs.ood_scores else None

        def make() -> Decisions:
            scorer = None
            if self.needs.ood_scores and int(of_head.present.sum()) > 1 and not of_head.nonfinite:
                scorer = Scorer.of(of_head, weight, self.head in tap.projected)
            return Decisions(self.head, self.needs, moments, self.ranks, scorer)

        return self.ranks.all_or_none(make)

    def _decide(self, tap: Tap, split: str, loader: Any, held: SplitStatistics, decisions: Decisions) -> None:
        # Where one rank's cache overflowed, all ranks make the second pass.
        if held.cached:
            self.ranks.all_or_none(partial(held.decide, decisions))
            return
        held.release()
        buffer, ignored = Buffer(), self.source.ignore_index
        self._pass(
            tap,
            split,
            loader,
            lambda batch, _: decisions.update_all(buffer.add(Samples.of(batch, ignored))),
            "class means",
        )
        self.ranks.all_or_none(lambda: decisions.update_all(buffer.take()))

    def ood_means(self, tap: Tap, decisions: Decisions | None = None) -> dict[str, dict[str, Tensor]]:
        """Feature means of the out-of-distribution data, by layer and loader; its scores go to the decisions."""
        loaders = named_loaders(self.needs.ood_loader)
        by_loader = {name: self._ood_means_of(name, loader, tap, decisions) for name, loader in loaders.items()}
        return {layer: {name: means[layer] for name, means in by_loader.items()} for layer in tap.modules}

    def _ood_means_of(self, name: str, loader: Any, tap: Tap, decisions: Decisions | None) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        scores: Scored = {}
        if decisions is not None:
            decisions.outside[name] = scores
        samples = torch.zeros((), dtype=wide_dtype(self.model.device), device=self.model.device)

        def add(step: Step) -> None:
            features, outputs = tap.read_unlabelled()
            if decisions is not None and decisions.scorer is not None:
                add_scores(scores, decisions.scorer.scores(features[self.head], outputs))
            samples.add_(len(features[self.head]))
            for layer, rows in features.items():
                total = rows.sum(0, dtype=samples.dtype)
                sums[layer] = sums[layer] + total if layer in sums else total

        def read(raw: Any) -> tuple[Any, Any]:
            return self.passes.inputs(raw), ()

        self.passes.each(f"out of distribution {name}".rstrip(), loader, tap, add, read=read)
        return {layer: self._mean(sums.get(layer), samples) for layer in tap.modules}

    def _mean(self, total: Tensor | None, samples: Tensor) -> Tensor:
        # A rank that had no sample does not know how many features there are.
        features = self.ranks.max(0 if total is None else len(total))
        total = samples.new_zeros(features) if total is None else total
        return self.ranks.sum(total) / self.ranks.sum(samples)

    @contextmanager
    def standing_still(self, make_loaders: MakeLoaders) -> Iterator[dict[str, Any]]:
        """Give the loaders, and leave no trace on the model, the trainer and the data."""
        with undisturbed(self.model):
            loaders = make_loaders()
        others = named_loaders(self.needs.ood_loader).values()
        with ExitStack() as stack:
            if self.verify:
                stack.enter_context(verified(self.trainer, self.model, loaders, self.warn))
            stack.enter_context(self.passes.standing_still(*loaders.values(), *others))
            yield loaders

    def tap(self) -> Tap:
        """Hooks on the classifier and the further layers."""
        assert self.found is not None
        return self._tap_at(self.found)

    def _tap_at(self, head: Head) -> Tap:
        averaged = [name for name, needs in self.needs.layers.items() if needs.averaged]
        return Tap(self.model, head, list(self.needs.layers), self.source.pool, averaged, self.source.max_features)

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

        stays: list[bool] = []

        def check(returned: Any) -> None:
            stays.append(self.stays_classifier(tap, returned))

        # What a sharded model returns is not whole.
        self.passes.each(split, loader, tap, read, purpose, check=None if self.passes.sharded else check)
        self.leave_out_weight_unless(all(stays), tap)

    def stays_classifier(self, tap: Tap, returned: Any) -> bool:
        """Whether the classifier is affine in the captured forward pass; raises where the model returned others."""
        refuse_other_outputs(self.needs, self.head, tap.scale_in(returned), type(self.model).__name__)
        return tap.stays_affine()

    def leave_out_weight_unless(self, affine: bool, tap: Tap) -> None:
        """Where the classifier is no affine map on some rank, give no weight, and say so."""
        if self.ranks.any(not affine):
            self._say_no_weight(self.head)
            tap.leave_out_weight()
