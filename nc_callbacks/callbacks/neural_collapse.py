"""The callback that measures neural collapse, NC1 to NC4."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

import nc_callbacks.functional as F_nc
from nc_callbacks.callbacks.arguments import (
    BatchFn,
    Epochs,
    ForwardFn,
    GlobalMean,
    Mode,
    Split,
    check_names_of_loaders,
)
from nc_callbacks.callbacks.base import CollapseCallback
from nc_callbacks.callbacks.measurement import Measurement
from nc_callbacks.engine.observation import ClassifierObservation, Observation
from nc_callbacks.engine.request import LayerNeeds, Needs
from nc_callbacks.functional.pairs import pair_metrics
from nc_callbacks.functional.rounding import centred as centred_at
from nc_callbacks.functional.rounding import rounding_of_sums
from nc_callbacks.functional.variability import nc1_and_separation
from nc_callbacks.probe import Pool
from nc_callbacks.statistics import ClassMoments

MAX_CLASSES_OF_MATRIX = 1_000
"""The k × k cosines are kept in `latest` up to this number of classes."""


class NeuralCollapse(CollapseCallback):
    """Measure neural collapse after training epochs and log it as ``nc/{split}/{name}``.

    Numbers, all dimensionless (formulas and sources in `nc_callbacks.functional`): ``nc1``, ``nc1_quotient``,
    ``nc1_cdnv``, ``class_separation``; of the centred class means ``nc2_equinorm``, ``nc2_equiangularity``,
    ``nc2_equiangularity_signed``,
    ``nc2_etf``, ``nc2_uniformity``, ``nc2_uniformity_var``; ``ncc_accuracy``; and at the classifier
    ``nc2_equinorm_weights``, ``nc2_equiangularity_weights``, ``nc2_etf_weights``, ``nc3``, ``nc3_etf``,
    ``nc3_uniform_duality``, ``nc3_bias``, ``nc4``, ``accuracy`` and, on the training split, ``tpt`` (1 where the
    training error is 0, else 0). ``nc4`` and ``ncc_accuracy`` use the class means of the training split on every
    split. Layers other than the classifier's input log as ``nc/{split}/{layer}/{name}``. On demand: ``nc5`` at every
    layer, and at the classifier ``mse_nc1``, ``mse_nc23``, ``mse_perp`` (in units of the squared error).

    Vectors in `latest` and `history`: ``class_mean_norms`` (‖μ_c‖) and ``counts``. Matrix in `latest`:
    ``class_mean_cosines`` (cos(μ_c, μ_c'), up to 1,000 classes). Classes without samples have NaN there.

    Args:
        ood_loader: Loader of out-of-distribution data (batches of inputs, or as in training); adds ``nc5`` and a pass
            over it. Or several by name, whose metrics log as ``nc/{split}/{loader}/nc5``.
        ood_scores: Add how well five scores of single samples tell that data from each split, ``ood_auroc_{score}`` and
            ``ood_fpr_{score}`` (false positive rate at 95 % true positive rate), with ``energy``, ``nearest_mean``,
            ``nci``, ``neco`` and ``mahalanobis`` for the score (see `nc_callbacks.functional`).
        mse_weight_decay: λ of the decomposition of the squared error (see `nc_callbacks.functional.mse_decomposition`);
            adds its three parts.
        unbalanced: Add the geometry of unbalanced classes at the classifier: ``nc2_seli``, ``nc2_seli_weights`` (up to
            1,000 classes) and ``minority_collapse``.
        standard_errors: Add ``nc1_corrected`` and ``nc1_cdnv_corrected``, without the bias of few samples a class, and
            their standard errors ``nc1_error`` and ``nc1_cdnv_error``.
        lda_accuracy: Add ``lda_accuracy`` at every layer, that of the class means of the training split whitened by Σ_W
            (`nc_callbacks.functional.whitened_weight`): what a linear head can make of the layer without training.

    The other arguments are those of all callbacks: see `nc_callbacks.callbacks.base.CollapseCallback`.

    Raises:
        ValueError: An argument is out of its range; in `setup` and before the first epoch, what is wrong with the
            model or the data.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(max_epochs=3, callbacks=[NeuralCollapse(splits=["train", "val"])], logger=False)
    """

    names = frozenset({"accuracy"})
    on_bar = frozenset({"nc1"})

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
        ood_loader: Any = None,
        ood_scores: bool = False,
        mse_weight_decay: float | None = None,
        unbalanced: bool = False,
        standard_errors: bool = False,
        lda_accuracy: bool = False,
    ) -> None:
        if mse_weight_decay is not None and mse_weight_decay < 0:
            raise ValueError(f"mse_weight_decay must be at least 0, got {mse_weight_decay}.")
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
        if ood_scores and ood_loader is None:
            raise ValueError("ood_scores=True needs the data to tell apart: pass ood_loader=....")
        check_names_of_loaders(ood_loader)
        self.ood_loader = ood_loader
        self.ood_scores = ood_scores
        self.mse_weight_decay = mse_weight_decay
        self.unbalanced = unbalanced
        self.standard_errors = standard_errors
        self.lda_accuracy = lda_accuracy

    @property
    def needs(self) -> Needs:
        """What a look has to gather for this callback."""
        of_layer = LayerNeeds("pooled", nearest_mean=True, whitened=self.lda_accuracy)
        layers = dict.fromkeys(self.layers, of_layer)
        return Needs(
            of_layer, layers, accuracy=True, mismatch=True, ood_loader=self.ood_loader, ood_scores=self.ood_scores
        )

    @property
    def settings(self) -> tuple[Any, ...]:
        """Arguments that change values: two callbacks with the same keys must have the same."""
        return (
            *super().settings,
            self.ood_loader,
            self.ood_scores,
            self.mse_weight_decay,
            self.standard_errors,
            self.lda_accuracy,
        )

    def measure(self, observation: Observation) -> Measurement:
        """The metrics of one layer on one split."""
        moments, classifier = observation.moments, observation.classifier
        centre = moments.sample_mean if self.global_mean == "samples" else None
        # These centre the means for themselves: where classes are many, no other copy shall stand beside theirs.
        tensors = self._of_means(observation, centre)
        shares: dict[str, float | None] = {"ncc_accuracy": observation.nearest_mean_accuracy}
        if self.lda_accuracy:
            shares["lda_accuracy"] = observation.whitened_accuracy
        if classifier is not None:
            tensors |= self._of_classifier(classifier, moments, centre)
            shares |= {"nc4": classifier.mismatch, "accuracy": classifier.accuracy}
            if self.ood_scores:
                for loader, separations in classifier.separations.items():
                    for name, (auroc, rate) in separations.items():
                        shares |= {_at(loader, f"ood_auroc_{name}"): auroc, _at(loader, f"ood_fpr_{name}"): rate}
            if observation.split == "train":
                shares["tpt"] = float(classifier.accuracy == 1)
        centred = centred_at(moments.means, centre, moments.precision)
        tensors |= _of_centred(centred, moments)
        if self.unbalanced and classifier is not None and classifier.weight is not None:
            tensors |= _of_unbalanced(classifier.weight, centred, moments)
        if self.standard_errors:
            # The same whether or not another callback has asked for the covariance of each class.
            moments = replace(moments, covariances=None)
            for name, metric in _CORRECTED.items():
                tensors |= {f"{name}_corrected": metric(moments), f"{name}_error": F_nc.standard_error(metric, moments)}
        return Measurement(
            numbers={name: float(value) for name, value in (tensors | shares).items() if value is not None},
            vectors={
                "class_mean_norms": observation.by_class(centred.norm(dim=1)),
                "counts": observation.by_class(moments.counts.to(centred.dtype)),
            },
            matrices=_cosines(observation, centred),
        )

    def _of_means(self, observation: Observation, centre: Tensor | None) -> dict[str, Tensor]:
        moments = observation.moments
        assert moments.within is not None
        nc1, separation = nc1_and_separation(moments.within, moments.means, moments.counts, centre, moments.precision)
        tensors = {
            "nc1": nc1,
            "nc1_quotient": F_nc.nc1_quotient(moments.within, moments.means, centre, moments.precision),
            "class_separation": separation,
        }
        if self.ood_loader is not None:
            for loader, mean in observation.ood_means.items():
                tensors[_at(loader, "nc5")] = F_nc.nc5(moments.means, mean)
        return tensors

    def _of_classifier(
        self, classifier: ClassifierObservation, moments: ClassMoments, centre: Tensor | None
    ) -> dict[str, Tensor]:
        if (weight := classifier.weight) is None:
            return {}
        of_means = moments.means, centre, moments.precision
        tensors = {
            "nc3": F_nc.nc3(weight, *of_means),
            "nc3_etf": F_nc.nc3_etf(weight, *of_means),
            "nc3_uniform_duality": F_nc.nc3_uniform_duality(weight, *of_means),
            "nc3_bias": F_nc.nc3_bias(weight, moments.means, classifier.bias, centre, moments.precision),
            "nc2_equinorm_weights": F_nc.nc2_equinorm(weight),
            "nc2_equiangularity_weights": F_nc.nc2_equiangularity(weight),
            "nc2_etf_weights": F_nc.nc2_etf(weight),
        }
        if self.mse_weight_decay is not None:
            parts = F_nc.mse_decomposition(weight, classifier.bias, moments, self.mse_weight_decay)
            tensors |= dict(zip(("mse_nc1", "mse_nc23", "mse_perp"), parts, strict=True))
        return tensors

    def through_depth(self, layers: dict[str, Measurement]) -> dict[str, float]:
        """Slope and R² of the law of data separation, over the layers."""
        order = [*(layer for layer in layers if layer), ""]
        measured = [layers[layer].numbers for layer in order if layer in layers]
        if len(measured) < 3 or any(numbers and "class_separation" not in numbers for numbers in measured):
            # Of layers that are projected it is not known.
            return {}
        fuzziness = [numbers.get("class_separation", math.nan) for numbers in measured]
        slope, fit = line(torch.tensor(fuzziness, dtype=torch.float64, device="cpu").log())
        return {"class_separation_slope": slope, "class_separation_fit": fit}

    def draw(self, folder: Path, formats: Sequence[str] = ("png",)) -> None:
        """Save this callback's figures in the folder."""
        from nc_callbacks.figures import save_collapse_figures

        save_collapse_figures(self.history, self.latest, folder, self.prefix, formats)


def line(y: Float[Tensor, " n"]) -> tuple[float, float]:
    """Slope and R² of the least-squares line through values at 0, 1, 2, …"""
    x = torch.arange(len(y), dtype=y.dtype, device=y.device) - (len(y) - 1) / 2
    y = y - y.mean()
    slope = (x @ y) / (x @ x)
    return float(slope), float(1 - (y - slope * x).square().sum() / y.square().sum())


def _at(loader: str, name: str) -> str:
    return f"{loader}/{name}" if loader else name


_CORRECTED = {"nc1": F_nc.nc1_corrected, "nc1_cdnv": F_nc.nc1_cdnv_corrected}


def _of_unbalanced(weight: Tensor, centred: Float[Tensor, "k p"], moments: ClassMoments) -> dict[str, Tensor]:
    found = {"minority_collapse": F_nc.minority_collapse(weight, moments.counts)}
    if len(centred) <= MAX_CLASSES_OF_MATRIX:
        found["nc2_seli_weights"], found["nc2_seli"] = F_nc.nc2_seli(weight, centred, moments.counts)
    return found


def _of_centred(centred: Float[Tensor, "k p"], moments: ClassMoments) -> dict[str, Tensor]:
    nearest = rounding_of_sums(moments.means, moments.precision).norm()
    pairs = pair_metrics(centred, moments.traces, nearest=nearest)
    assert pairs.cdnv is not None
    return {
        "nc1_cdnv": pairs.cdnv,
        "nc2_equinorm": F_nc.nc2_equinorm(centred),
        "nc2_equiangularity": pairs.equiangularity,
        "nc2_equiangularity_signed": F_nc.nc2_equiangularity(centred, signed=True),
        "nc2_etf": F_nc.nc2_etf(centred),
        "nc2_uniformity": pairs.uniformity,
        "nc2_uniformity_var": pairs.uniformity_var,
    }


def _cosines(observation: Observation, centred: Float[Tensor, "k p"]) -> dict[str, Tensor]:
    if len(centred) > MAX_CLASSES_OF_MATRIX:
        return {}
    unit = centred / centred.norm(dim=1, keepdim=True)
    return {"class_mean_cosines": observation.by_class(unit @ unit.T)}
