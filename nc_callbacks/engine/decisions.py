"""How often simple classifiers made of the final class means are right."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from nc_callbacks.distributed import Ranks
from nc_callbacks.engine.buffer import Samples
from nc_callbacks.engine.outside import Scored, Scorer, add_scores, separations
from nc_callbacks.engine.request import Needs
from nc_callbacks.functional import centred_mean_weight, whitened_weight
from nc_callbacks.functional._common import common_dtype
from nc_callbacks.functional.nearest_mean import NearestMean
from nc_callbacks.statistics import ClassMoments


class Decisions:
    """How often nearest class mean and centred class means are right; class means of the training split.

    Args:
        head: Dotted name of the classifier.
        needs: What is asked for.
        moments: Of the training split, by layer.
        ranks: The processes that share the data.
        scorer: Of samples, where out-of-distribution data is to be told apart.
    """

    def __init__(
        self, head: str, needs: Needs, moments: dict[str, ClassMoments], ranks: Ranks, scorer: Scorer | None = None
    ) -> None:
        self.scorer = scorer
        self.within: Scored = {}
        self.outside: dict[str, Scored] = {}
        self.head = head
        self.needs = needs
        self.ranks = ranks
        # A class without training samples, or with features that are not finite, has no mean to be near to.
        self.classes = {layer: m.means.isfinite().all(1).nonzero().squeeze(1) for layer, m in moments.items()}
        self.means = {layer: m.means[self.classes[layer]] for layer, m in moments.items()}
        self.precision = {layer: m.precision for layer, m in moments.items()}
        self.nearest: dict[tuple[str, torch.dtype], NearestMean] = {}
        asked = [layer for layer in moments if needs.at(layer, head).whitened]
        found = {layer: _whitened(layer, moments[layer]) for layer in asked}
        self.whitened = {layer: linear for layer, linear in found.items() if linear is not None}
        # Made once: whether a class mean is rounding alone is a question to the device.
        asks_centred = needs.centred_means and len(self.classes[head]) >= 2
        self.centred = centred_mean_weight(self.means[head], "none", self.precision[head]) if asks_centred else None
        self.counts = {name: self.classes[head].new_zeros(()) for name in ("samples", *self._asked(moments))}

    def _asked(self, layers: Iterable[str]) -> list[str]:
        nearest = [f"nearest {layer}" for layer in layers if self.needs.at(layer, self.head).nearest_mean]
        return [
            *nearest,
            *(f"whitened {layer}" for layer in self.whitened),
            *(["mismatch"] if self.needs.mismatch else []),
            *(["centred means"] if self.needs.centred_means else []),
        ]

    def restarted(self) -> Decisions:
        """The same class means, for another split."""
        other = copy.copy(self)
        other.within = {}
        other.counts = {name: torch.zeros_like(count) for name, count in self.counts.items()}
        return other

    def update_all(self, parts: Iterable[Samples]) -> None:
        """Add samples."""
        for samples in parts:
            self.update(samples)

    def update(self, samples: Samples) -> None:
        """Add samples, of which the features of the layers in question and the outputs are there."""
        self.counts["samples"] += samples.number()
        for layer, rows in samples.features.items():
            if layer in self.classes and len(self.classes[layer]) >= 2:
                self._add_nearest(layer, rows, samples)
            if layer in self.whitened:
                weight, bias = self.whitened[layer]
                answers = (rows.to(weight.dtype) @ weight.T + bias).argmax(1)
                self.counts[f"whitened {layer}"] += samples.total(answers == samples.targets)
        if self.centred is not None:
            logits = samples.features[self.head].to(self.centred.dtype) @ self.centred.T
            right = self.classes[self.head][logits.argmax(1)] == samples.targets
            self.counts["centred means"] += samples.total(right)

        if self.scorer is not None:
            self._add_scores(self.scorer, samples)

    def _add_scores(self, scorer: Scorer, samples: Samples) -> None:
        counted = samples if samples.counted is None else samples.rows(samples.counted)
        add_scores(self.within, scorer.scores(counted.features[self.head], counted.outputs))

    def separations(self) -> dict[str, dict[str, tuple[float, float]]]:
        """How well each score tells the data of each other loader from the samples; every rank has to ask."""
        if self.scorer is None:
            return {}
        scorer, ranks = self.scorer, self.ranks
        return {name: separations(self.within, outside, scorer, ranks) for name, outside in self.outside.items()}

    def _add_nearest(self, layer: str, rows: Tensor, samples: Samples) -> None:
        of_layer = self.needs.at(layer, self.head).nearest_mean
        mismatch = self.needs.mismatch and layer == self.head
        if not (of_layer or mismatch):
            return
        classes = self.classes[layer]
        kind = layer, common_dtype(rows)
        if kind not in self.nearest:
            self.nearest[kind] = NearestMean.of(self.means[layer], kind[1])
        nearest = classes[self.nearest[kind](rows)]
        if of_layer:
            self.counts[f"nearest {layer}"] += samples.total(nearest == samples.targets)
        if mismatch:
            # Classes without training samples take no part on either side.
            self.counts["mismatch"] += samples.total(nearest != classes[samples.outputs[:, classes].argmax(1)])

    def shares(self) -> dict[str, float]:
        """Shares of all ranks' samples; every rank has to ask."""
        totals = self.ranks.sum(torch.stack(list(self.counts.values()))).tolist()
        named = dict(zip(self.counts, totals, strict=True))
        return {name: count / max(named["samples"], 1) for name, count in named.items()}


def _whitened(layer: str, moments: ClassMoments) -> tuple[Tensor, Tensor] | None:
    """The whitened head, or a warning and None where there is none."""
    try:
        weight, bias = whitened_weight(moments)
    except ValueError as error:
        rank_zero_warn(f"lda_accuracy of {layer!r} is not measured: {error}")
        return None
    if not weight.isfinite().all():
        rank_zero_warn(f"lda_accuracy of {layer!r} is not measured: its features are not finite.")
        return None
    return weight, bias
