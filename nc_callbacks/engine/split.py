"""The statistics of one split, sample by sample."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nc_callbacks.distributed import Ranks
from nc_callbacks.engine.buffer import Budget, Buffer, Cache, Samples
from nc_callbacks.engine.decisions import Decisions
from nc_callbacks.engine.observation import ClassifierObservation, Observation
from nc_callbacks.engine.request import Needs
from nc_callbacks.probe import Batch, Tap
from nc_callbacks.statistics import ClassMoments, ClassStatistics, OutputErrors, SoftmaxStatistics, wide_dtype
from nc_callbacks.statistics.batches import check_range


class SplitStatistics:
    """Statistics of one split, streamed.

    Args:
        tap: The hooks that batches come from.
        needs: What to gather.
        device: Where batches lie.
        ranks: The processes that share the data.
        ignore_index: Samples with this target are left out.
        budget: Memory for what needs the final class means; None keeps nothing.
    """

    def __init__(
        self,
        tap: Tap,
        needs: Needs,
        device: torch.device,
        ranks: Ranks,
        ignore_index: int | None = None,
        budget: Budget | None = None,
    ) -> None:
        k = tap.num_classes
        # On a CPU samples that do not count are left out before; a trainer of one process may run among several.
        ignored = None if device.type == "cpu" else ignore_index
        settings: dict[str, Any] = {
            "ignore_index": ignored,
            "process_group": ranks.group,
            "sync_on_compute": ranks.size > 1,
        }
        self.head, self.num_classes = tap.head, k
        self.needs, self.ranks, self.ignore_index = needs, ranks, ignore_index
        self.statistics = {
            layer: ClassStatistics(k, covariance=needs.at(layer, tap.head).covariance, **settings).to(device)
            for layer in tap.modules
        }
        self.errors = {kind: OutputErrors(k, kind, **settings).to(device) for kind in sorted(needs.errors)}
        self.softmax = SoftmaxStatistics(k, **settings).to(device) if needs.softmax else None
        self.seen = torch.zeros((), dtype=torch.long, device=device)
        self.correct = torch.zeros((), dtype=torch.long, device=device)
        self.cache = _cache(needs, tap, budget)
        self.row_of = {index: row for row, index in enumerate(needs.samples)}
        # Index + 1, label, outputs; a row stays 0 where another rank meets the sample.
        self.samples = torch.zeros(len(self.row_of), 2 + k, dtype=wide_dtype(device), device=device)
        self._buffer = Buffer()

    def update(self, batch: Batch, indices: Sequence[int] | None = None) -> None:
        """Add a batch, whose samples have these indices in the training set where they are known.

        Raises:
            ValueError: Targets on the CPU lie outside 0…k−1.
        """
        samples = Samples.of(batch, self.ignore_index)
        if samples.targets.device.type == "cpu":
            check_range(samples.targets, self.num_classes)
        self._keep_samples(batch, indices)
        self._add(self._buffer.add(samples))

    def _add(self, parts: Iterable[Samples]) -> None:
        for samples in parts:
            self._add_features(samples)
            self._add_outputs(samples)
            if self.cache is not None:
                self.cache.add(samples)

    def _add_features(self, samples: Samples) -> None:
        for layer, statistics in self.statistics.items():
            statistics.update(samples.features[layer], samples.targets)

    def _add_outputs(self, samples: Samples) -> None:
        for errors in self.errors.values():
            errors.update(samples.outputs, samples.targets)
        if self.softmax is not None:
            self.softmax.update(samples.outputs, samples.targets)
        if self.needs.accuracy:
            self.seen += samples.number()
            self.correct += samples.total(samples.outputs.argmax(1) == samples.targets)

    def _settle(self) -> None:
        self._add(self._buffer.take())
        for statistics in self.statistics.values():
            statistics.settle()

    def moments(self) -> dict[str, ClassMoments]:
        """Of all ranks' samples, by layer; every rank has to ask."""
        self.ranks.all_or_none(self._settle)
        return {layer: self.ranks.all_or_none(statistics.compute) for layer, statistics in self.statistics.items()}

    @property
    def cached(self) -> bool:
        """Whether all ranks have kept what needs the final class means; every rank has to ask."""
        self.ranks.all_or_none(self._settle)
        return not self.ranks.any(self.cache is None or not self.cache.complete)

    def decide(self, decisions: Decisions) -> None:
        """Give what was kept to the decisions, and free it."""
        if self.cache is not None:
            decisions.update_all(self.cache)
            self.cache.clear()

    def release(self) -> None:
        """Free what was kept."""
        if self.cache is not None:
            self.cache.clear()

    def observed(
        self, split: str, tap: Tap, decisions: Decisions | None, ood_means: dict[str, dict[str, Tensor]]
    ) -> dict[str, Observation]:
        """Observations by layer, of all ranks' samples; every rank has to ask."""
        shares = {} if decisions is None else decisions.shares()
        observations = {
            layer: Observation(
                split,
                layer,
                moments,
                shares.get(f"nearest {layer}"),
                ood_means=ood_means.get(layer, {}),
                whitened_accuracy=shares.get(f"whitened {layer}"),
                projected=layer in tap.projected,
            )
            for layer, moments in self.moments().items()
        }
        weight, bias = tap.weight_and_bias()
        classifier = ClassifierObservation(
            weight=weight,
            bias=bias,
            accuracy=self._accuracy(),
            mismatch=shares.get("mismatch"),
            centred_mean_accuracy=shares.get("centred means"),
            errors={kind: self.ranks.all_or_none(errors.compute) for kind, errors in self.errors.items()},
            expectations=None if self.softmax is None else self.ranks.all_or_none(self.softmax.compute),
            samples=self._reduced_samples() if split == "train" else None,
            separations={} if decisions is None else decisions.separations(),
        )
        observations[self.head] = replace(observations[self.head], classifier=classifier)
        return observations

    def _accuracy(self) -> float | None:
        if not self.needs.accuracy:
            return None
        seen, correct = self.ranks.sum(torch.stack([self.seen, self.correct])).tolist()
        return correct / max(seen, 1)

    def _keep_samples(self, batch: Batch, indices: Sequence[int] | None) -> None:
        if not self.row_of or indices is None or len(indices) != len(batch.targets):
            return
        for place, index in enumerate(indices):
            if (row := self.row_of.get(index)) is not None:
                self.samples[row, 0] = index + 1
                self.samples[row, 1] = batch.targets[place]
                self.samples[row, 2:] = batch.outputs[place]

    def _reduced_samples(self) -> Tensor | None:
        """The chosen samples that some rank has met."""
        if not self.row_of:
            return None
        rows = self.ranks.sum(self.samples)
        rows = rows[rows[:, 0] > 0]
        return torch.cat([rows[:, :1] - 1, rows[:, 1:]], 1)


def _cache(needs: Needs, tap: Tap, budget: Budget | None) -> Cache | None:
    if budget is None or not needs.decisions:
        return None
    layers = [
        layer for layer in tap.modules if needs.at(layer, tap.head).decisions or (needs.of_head and layer == tap.head)
    ]
    return Cache(budget, layers, outputs=needs.mismatch or needs.ood_scores)
