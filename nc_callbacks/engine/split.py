"""What is gathered of one split, batch by batch, and what of it needs the final class means."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from nc_callbacks.distributed import Ranks
from nc_callbacks.engine.request import ClassifierObservation, Needs, Observation
from nc_callbacks.engine.waiting import Waiting, together
from nc_callbacks.functional import centred_mean_weight, nearest_mean
from nc_callbacks.probe import Batch, Tap
from nc_callbacks.statistics import ClassMoments, ClassStatistics, OutputErrors, SoftmaxStatistics, wide_dtype
from nc_callbacks.statistics.batches import check_range


class Gathered:
    """The statistics of one split, streamed.

    Args:
        tap: The hooks that batches come from.
        needs: What to gather.
        device: Where batches lie.
        ranks: The processes that share the data.
        ignore_index: Samples with this target are left out.
        cache_bytes: Budget for keeping batches in `cache`, which is None once it is exceeded.
    """

    def __init__(
        self,
        tap: Tap,
        needs: Needs,
        device: torch.device,
        ranks: Ranks,
        ignore_index: int | None = None,
        cache_bytes: int = 0,
    ) -> None:
        k = tap.num_classes
        # A trainer of one process may run where torch.distributed has several.
        several = {"process_group": ranks.group, "sync_on_compute": ranks.size > 1}
        settings: dict[str, Any] = {"ignore_index": ignore_index} | several
        self.head = tap.head
        self.ranks = ranks
        self.ignore_index = ignore_index
        self.statistics = {
            layer: ClassStatistics(
                k,
                covariance=needs.covariance if layer == tap.head else needs.layer_covariance,
                **settings,
            ).to(device)
            for layer in tap.modules
        }
        self.errors = {kind: OutputErrors(k, kind, **settings).to(device) for kind in sorted(needs.errors)}
        self.softmax = SoftmaxStatistics(k, **settings).to(device) if needs.softmax else None
        self.samples_seen = torch.zeros((), dtype=torch.long, device=device)
        self.correct = torch.zeros((), dtype=torch.long, device=device)
        self.rows = {index: row for row, index in enumerate(needs.samples)}
        # Index + 1, label, outputs; a row stays 0 where another rank meets the sample.
        self.samples = torch.zeros(len(self.rows), 2 + k, dtype=wide_dtype(device), device=device)
        self.num_classes = k
        self.room = cache_bytes
        self.cache: list[Batch] | None = []
        self._waiting = Waiting()

    def update(self, batch: Batch, indices: Sequence[int] | None = None) -> None:
        """Add a batch, whose samples have these indices in the training set where they are known.

        Raises:
            ValueError: Targets on the CPU lie outside 0…k−1.
        """
        if batch.targets.device.type == "cpu":
            kept = counted_rows(batch.targets, self.ignore_index)
            check_range(batch.targets[kept], self.num_classes)
        self._keep_samples(batch, indices)
        if self.cache is not None:
            self.room -= batch.nbytes
            self.cache.append(batch)
            self.cache = self.cache if self.room >= 0 else None
        self._add(self._waiting.add(batch))

    def _add(self, batches: Iterable[Batch]) -> None:
        for batch in batches:
            for layer, statistics in self.statistics.items():
                statistics.update(batch.features[layer], batch.targets)
            for errors in self.errors.values():
                errors.update(batch.outputs, batch.targets)
            if self.softmax is not None:
                self.softmax.update(batch.outputs, batch.targets)
            counted = counted_rows(batch.targets, self.ignore_index)
            self.samples_seen += counted.sum()
            self.correct += ((batch.outputs.argmax(1) == batch.targets) & counted).sum()

    def _settle(self) -> None:
        self._add(self._waiting.take())
        for statistics in self.statistics.values():
            statistics.settle()

    def moments(self) -> dict[str, ClassMoments]:
        """Of all ranks' samples, by layer; every rank has to ask."""
        self.ranks.together(self._settle)
        return {layer: self.ranks.together(statistics.compute) for layer, statistics in self.statistics.items()}

    def _keep_samples(self, batch: Batch, indices: Sequence[int] | None) -> None:
        if not self.rows or indices is None or len(indices) != len(batch.targets):
            return
        for place, index in enumerate(indices):
            if (row := self.rows.get(index)) is not None:
                self.samples[row, 0] = index + 1
                self.samples[row, 1] = batch.targets[place]
                self.samples[row, 2:] = batch.outputs[place]

    def observed(
        self, split: str, tap: Tap, decisions: Decisions | None, ood_means: dict[str, Tensor] | None = None
    ) -> dict[str, Observation]:
        """Observations by layer, of all ranks' samples; every rank has to ask."""
        shares = {} if decisions is None else decisions.shares()
        observations = {
            layer: Observation(
                split, layer, moments, shares.get(f"nearest {layer}"), ood_mean=(ood_means or {}).get(layer)
            )
            for layer, moments in self.moments().items()
        }
        weight, bias = tap.weight_and_bias()
        seen, correct = self.ranks.sum(torch.stack([self.samples_seen, self.correct])).tolist()
        classifier = ClassifierObservation(
            weight=weight,
            bias=bias,
            accuracy=correct / max(seen, 1),
            mismatch=shares.get("mismatch"),
            centred_mean_accuracy=shares.get("centred means"),
            errors={kind: self.ranks.together(errors.compute) for kind, errors in self.errors.items()},
            expectations=None if self.softmax is None else self.ranks.together(self.softmax.compute),
            samples=self._reduced_samples() if split == "train" else None,
        )
        observations[self.head] = replace(observations[self.head], classifier=classifier)
        return observations

    def _reduced_samples(self) -> Tensor | None:
        """The chosen samples that some rank has met."""
        if not self.rows:
            return None
        rows = self.ranks.sum(self.samples)
        rows = rows[rows[:, 0] > 0]
        return torch.cat([rows[:, :1] - 1, rows[:, 1:]], 1)


class Decisions:
    """How often nearest class mean and centred class means are right; class means of the training split.

    Args:
        head: Dotted name of the classifier.
        moments: Of the training split, by layer.
        ranks: The processes that share the data.
        ignore_index: Samples with this target are left out.
    """

    def __init__(
        self, head: str, moments: dict[str, ClassMoments], ranks: Ranks, ignore_index: int | None = None
    ) -> None:
        self.head = head
        self.ranks = ranks
        self.ignore_index = ignore_index
        # A class without training samples, or with features that are not finite, has no mean to be near to.
        self.classes = {layer: m.means.isfinite().all(1).nonzero().squeeze(1) for layer, m in moments.items()}
        self.means = {layer: m.means[self.classes[layer]] for layer, m in moments.items()}
        names = ("samples", "mismatch", "centred means", *(f"nearest {layer}" for layer in moments))
        self.counts = {name: self.classes[head].new_zeros(()) for name in names}

    def restarted(self) -> Decisions:
        """The same class means, for another split."""
        other = copy.copy(self)
        other.counts = {name: torch.zeros_like(count) for name, count in self.counts.items()}
        return other

    def update_all(self, batches: Iterable[Batch]) -> None:
        """Add batches."""
        for batch in together(batches):
            self.update(batch)

    def update(self, batch: Batch) -> None:
        """Add a batch."""
        outputs, targets = batch.outputs, batch.targets
        counted = counted_rows(targets, self.ignore_index)
        self.counts["samples"] += counted.sum()
        for layer, rows in batch.features.items():
            classes, means = self.classes[layer], self.means[layer]
            if len(classes) < 2:
                continue
            nearest = classes[nearest_mean(rows, means)]
            self.counts[f"nearest {layer}"] += ((nearest == targets) & counted).sum()
            if layer == self.head:
                # Classes without training samples take no part on either side.
                self.counts["mismatch"] += ((nearest != classes[outputs[:, classes].argmax(1)]) & counted).sum()
                logits = rows.to(means.dtype) @ centred_mean_weight(means, "none").T
                self.counts["centred means"] += ((classes[logits.argmax(1)] == targets) & counted).sum()

    def shares(self) -> dict[str, float]:
        """Shares of all ranks' samples; every rank has to ask."""
        totals = self.ranks.sum(torch.stack(list(self.counts.values()))).tolist()
        named = dict(zip(self.counts, totals, strict=True))
        return {name: count / max(named["samples"], 1) for name, count in named.items()}


def counted_rows(targets: Int[Tensor, " n"], ignore_index: int | None) -> Bool[Tensor, " n"]:
    """Which samples count."""
    return torch.ones_like(targets, dtype=torch.bool) if ignore_index is None else targets != ignore_index
