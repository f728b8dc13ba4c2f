"""The callback that measures how many directions a layer's activations use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from nc_callbacks.callbacks.arguments import BatchFn, Epochs, ForwardFn, GlobalMean, Mode, Split
from nc_callbacks.callbacks.base import CollapseCallback
from nc_callbacks.callbacks.measurement import Measurement
from nc_callbacks.engine.observation import Observation
from nc_callbacks.engine.request import LayerNeeds, Needs
from nc_callbacks.functional import effective_rank, eigenvalues, entropy_rank
from nc_callbacks.functional.spectrum import decay_of, present_of, rankme_of
from nc_callbacks.probe import Pool


class FeatureSpectrum(CollapseCallback):
    """Measure the spectrum of the classifier's input and of further `layers` (Lindegaard 2021, Fig. 3).

    Exact, from the p × p second moment of all samples. Numbers, logged as ``nc/{split}/{name}``:
    ``spectrum_effective_rank`` (exp of the entropy of the shares, in [1, p]), ``spectrum_rankme`` (the same of singular
    values), ``spectrum_stable_rank`` (Σλ/λ_1, in [1, p]), ``spectrum_decay`` and ``spectrum_decay_fit`` (α of
    λ_j ∝ j^(−α), and R²), ``spectrum_share`` (share of the first k − 1 directions, in [0, 1]), and at the classifier
    ``spectrum_stable_rank_weights`` (‖W‖_F²/‖W‖²). Vectors, largest first: ``explained_variance`` (λ_j/Σλ, in `latest`
    and `history`), ``cumulative_explained_variance`` and ``singular_values`` (of the n × p activation matrix, in
    `latest`), ``weight_singular_values`` (of W); by class, on demand, ``effective_rank_per_class`` (of C_c).

    Args:
        centred: Subtract the mean over samples; by default activations are taken as they are.
        by_class: Measure the effective rank of each class's covariance too, which takes k p × p matrices of memory.

    The other arguments are those of all callbacks: see `nc_callbacks.callbacks.base.CollapseCallback`.

    Raises:
        ValueError: In `setup` and before the first epoch, what is wrong with the model or the data.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(max_epochs=3, callbacks=[FeatureSpectrum(centred=True)], logger=False)
    """

    def __init__(
        self,
        head: str | None = None,
        layers: Sequence[str] | str = (),
        every_n_epochs: int = 1,
        epochs: Epochs = None,
        splits: Sequence[Split | str] = ("train",),
        mode: Mode = "epoch_end",
        batch_fn: BatchFn | None = None,
        forward_fn: ForwardFn | None = None,
        feature_cache: int | str | None = None,
        figures: bool | str | Path = False,
        prefix: str = "nc",
        pool: Pool = None,
        global_mean: GlobalMean = "classes",
        ignore_index: int | None = -100,
        verify: bool = False,
        max_features: int | None = None,
        *,
        centred: bool = False,
        by_class: bool = False,
    ) -> None:
        super().__init__(
            head,
            layers,
            every_n_epochs,
            epochs,
            splits,
            mode,
            batch_fn,
            forward_fn,
            feature_cache,
            figures,
            prefix,
            pool,
            global_mean,
            ignore_index,
            verify,
            max_features,
        )
        self.centred = centred
        self.by_class = by_class

    @property
    def needs(self) -> Needs:
        """What a look has to gather for this callback."""
        of_layer = LayerNeeds("per_class" if self.by_class else "pooled")
        return Needs(of_layer, dict.fromkeys(self.layers, of_layer))

    @property
    def settings(self) -> tuple[Any, ...]:
        """Arguments that change values: two callbacks with the same keys must have the same."""
        return (self.centred, self.by_class)

    def measure(self, observation: Observation) -> Measurement:
        """The metrics of one layer on one split."""
        moments = observation.moments
        matrix = moments.second_moment
        if self.centred:
            matrix = matrix - torch.outer(moments.sample_mean, moments.sample_mean)
        values = eigenvalues(matrix)
        samples = int(moments.counts.sum())
        present = present_of(values, matrix.diagonal(), samples, moments.precision)
        shares = values / values.sum()
        cumulative = shares.cumsum(0)
        directions = min(len(moments.counts) - 1, len(shares))
        decay, fit = decay_of(present, samples)
        numbers = {
            "spectrum_effective_rank": entropy_rank(shares),
            "spectrum_rankme": rankme_of(present),
            "spectrum_stable_rank": values.sum() / values[0],
            "spectrum_decay": decay,
            "spectrum_decay_fit": fit,
            "spectrum_share": cumulative[directions - 1],
        }
        vectors = {"explained_variance": shares}
        if self.by_class:
            assert moments.covariances is not None
            ranks = torch.stack([effective_rank(covariance) for covariance in moments.covariances])
            vectors["effective_rank_per_class"] = observation.by_class(ranks)
        if observation.classifier is not None and (weight := observation.classifier.weight) is not None:
            of_weight = torch.linalg.svdvals(weight.double() if weight.device.type == "cpu" else weight.float())
            vectors["weight_singular_values"] = torch.nn.functional.pad(of_weight, (0, len(values) - len(of_weight)))
            numbers["spectrum_stable_rank_weights"] = of_weight.square().sum() / of_weight[0].square()
        return Measurement(
            numbers={name: float(value) for name, value in numbers.items()},
            vectors=vectors,
            matrices={
                "cumulative_explained_variance": cumulative,
                "singular_values": (values * samples).sqrt(),
            },
        )

    def draw(self, folder: Path, formats: Sequence[str] = ("png",)) -> None:
        """Save this callback's figures in the folder."""
        from nc_callbacks.figures import save_spectrum_figures

        save_spectrum_figures(self.history, self.latest, folder, self.prefix, formats, self.num_classes)
