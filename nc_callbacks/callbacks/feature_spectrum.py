"""The callback that measures how many directions a layer's activations use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from nc_callbacks.callbacks.base import CollapseCallback
from nc_callbacks.engine.measurement import Measurement
from nc_callbacks.engine.request import Needs, Observation
from nc_callbacks.functional import eigenvalues, entropy_rank


class FeatureSpectrum(CollapseCallback):
    """Measure the spectrum of the classifier's input and of further `layers` (Lindegaard 2021, Fig. 3).

    Exact, from the p × p second moment of all samples. Numbers, logged as ``nc/{split}/{name}``:
    ``spectrum_effective_rank`` (exp of the entropy of the shares, in [1, p]) and ``spectrum_share`` (share of the
    first k − 1 directions, in [0, 1]). Vectors, largest first: ``explained_variance`` (λ_j/Σλ, in `latest` and
    `history`), ``cumulative_explained_variance`` and ``singular_values`` (of the n × p activation matrix, in `latest`).

    Args:
        centred: Subtract the mean over samples; by default activations are taken as they are.
        kwargs: The arguments of `nc_callbacks.callbacks.base.CollapseCallback`.

    Raises:
        ValueError: In `setup` and before the first epoch, what is wrong with the model or the data.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(max_epochs=3, callbacks=[FeatureSpectrum(centred=True)], logger=False)
    """

    def __init__(self, *, centred: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.centred = centred

    @property
    def needs(self) -> Needs:
        return Needs(self.layers, covariance="pooled", layer_covariance="pooled")

    def measure(self, observation: Observation) -> Measurement:
        moments = observation.moments
        matrix = moments.second_moment
        if self.centred:
            matrix = matrix - torch.outer(moments.sample_mean, moments.sample_mean)
        values = eigenvalues(matrix)
        shares = values / values.sum()
        cumulative = shares.cumsum(0)
        directions = min(len(moments.counts) - 1, len(shares))
        return Measurement(
            numbers={
                "spectrum_effective_rank": float(entropy_rank(shares)),
                "spectrum_share": float(cumulative[directions - 1]),
            },
            vectors={"explained_variance": shares},
            matrices={
                "cumulative_explained_variance": cumulative,
                "singular_values": (values * moments.counts.sum()).sqrt(),
            },
        )

    def draw(self, folder: Path) -> None:
        from nc_callbacks.figures import save_spectrum_figures

        save_spectrum_figures(self.history, self.latest, folder, self.prefix)
