"""The callback that measures neural collapse, NC1 to NC4."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nc_callbacks.functional as F_nc
from nc_callbacks.callbacks.base import CollapseCallback
from nc_callbacks.engine.measurement import Measurement
from nc_callbacks.engine.request import Needs, Observation
from nc_callbacks.functional.pairs import pair_metrics
from nc_callbacks.functional.rounding import centred as centred_at
from nc_callbacks.functional.rounding import rounding_of_sums

MAX_CLASSES_OF_MATRIX = 1_000
"""The k × k cosines are kept in `latest` up to this number of classes."""


class NeuralCollapse(CollapseCallback):
    """Measure neural collapse after training epochs and log it as ``nc/{split}/{name}``.

    Numbers, all dimensionless (formulas and sources in `nc_callbacks.functional`): ``nc1``, ``nc1_quotient``,
    ``nc1_cdnv``; of the centred class means ``nc2_equinorm``, ``nc2_equiangularity``, ``nc2_equiangularity_signed``,
    ``nc2_etf``, ``nc2_uniformity``, ``nc2_uniformity_var``; ``ncc_accuracy``; and at the classifier
    ``nc2_equinorm_weights``, ``nc2_equiangularity_weights``, ``nc2_etf_weights``, ``nc3``, ``nc3_etf``,
    ``nc3_uniform_duality``, ``nc4``, ``accuracy`` and, on the training split, ``tpt`` (1 where the training error is
    0, else 0). ``nc4`` and ``ncc_accuracy`` use the class means of the training split on every split. Layers other
    than the classifier's input log as ``nc/{split}/{layer}/{name}``. On demand: ``nc5`` at every layer, and at the
    classifier ``mse_nc1``, ``mse_nc23``, ``mse_perp`` (in units of the squared error).

    Vectors in `latest` and `history`: ``class_mean_norms`` (‖μ_c‖) and ``counts``. Matrix in `latest`:
    ``class_mean_cosines`` (cos(μ_c, μ_c'), up to 1,000 classes). Classes without samples have NaN there.

    Args:
        ood_loader: Loader of out-of-distribution data (batches of inputs, or as in training); adds ``nc5`` and a pass
            over it.
        mse_weight_decay: λ of the decomposition of the squared error (see `nc_callbacks.functional.mse_decomposition`);
            adds its three parts.
        kwargs: The arguments of `nc_callbacks.callbacks.base.CollapseCallback`.

    Raises:
        ValueError: An argument is out of its range; in `setup` and before the first epoch, what is wrong with the
            model or the data.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(max_epochs=3, callbacks=[NeuralCollapse(splits=["train", "val"])], logger=False)
    """

    def __init__(self, *, ood_loader: Any = None, mse_weight_decay: float | None = None, **kwargs: Any) -> None:
        if mse_weight_decay is not None and mse_weight_decay < 0:
            raise ValueError(f"mse_weight_decay must be at least 0, got {mse_weight_decay}.")
        super().__init__(**kwargs)
        self.ood_loader = ood_loader
        self.mse_weight_decay = mse_weight_decay

    @property
    def needs(self) -> Needs:
        return Needs(self.layers, covariance="pooled", layer_covariance="pooled", ood_loader=self.ood_loader)

    def measure(self, observation: Observation) -> Measurement:
        moments = observation.moments
        assert moments.within is not None
        means, precision = moments.means, moments.precision
        centre = moments.sample_mean if self.global_mean == "samples" else None
        classifier = observation.classifier
        # These centre the means for themselves: where classes are many, no other copy shall stand beside theirs.
        tensors = {
            "nc1": F_nc.nc1(moments.within, means, centre, precision),
            "nc1_quotient": F_nc.nc1_quotient(moments.within, means, centre, precision),
        }
        if classifier is not None:
            tensors |= {
                "nc3": F_nc.nc3(classifier.weight, means, centre, precision),
                "nc3_etf": F_nc.nc3_etf(classifier.weight, means, centre, precision),
                "nc3_uniform_duality": F_nc.nc3_uniform_duality(classifier.weight, means, centre, precision),
            }
        centred = centred_at(means, centre, precision)
        tensors |= {
            "nc2_equinorm": F_nc.nc2_equinorm(centred),
            "nc2_equiangularity_signed": F_nc.nc2_equiangularity(centred, signed=True),
            "nc2_etf": F_nc.nc2_etf(centred),
        }
        pairs = pair_metrics(centred, moments.traces, nearest=rounding_of_sums(means, precision).norm())
        assert pairs.cdnv is not None
        tensors |= {
            "nc1_cdnv": pairs.cdnv,
            "nc2_equiangularity": pairs.equiangularity,
            "nc2_uniformity": pairs.uniformity,
            "nc2_uniformity_var": pairs.uniformity_var,
        }
        if self.ood_loader is not None:
            assert observation.ood_mean is not None
            tensors["nc5"] = F_nc.nc5(means, observation.ood_mean)
        shares = {"ncc_accuracy": observation.nearest_mean_accuracy}
        if classifier is not None:
            weight = classifier.weight
            tensors |= {
                "nc2_equinorm_weights": F_nc.nc2_equinorm(weight),
                "nc2_equiangularity_weights": F_nc.nc2_equiangularity(weight),
                "nc2_etf_weights": F_nc.nc2_etf(weight),
            }
            if self.mse_weight_decay is not None:
                parts = F_nc.mse_decomposition(weight, classifier.bias, moments, self.mse_weight_decay)
                tensors |= dict(zip(("mse_nc1", "mse_nc23", "mse_perp"), parts, strict=True))
            shares |= {"nc4": classifier.mismatch, "accuracy": classifier.accuracy}
            if observation.split == "train":
                shares["tpt"] = float(classifier.accuracy == 1)
        matrices = {}
        if len(centred) <= MAX_CLASSES_OF_MATRIX:
            unit = centred / centred.norm(dim=1, keepdim=True)
            matrices["class_mean_cosines"] = observation.by_class(unit @ unit.T)
        return Measurement(
            numbers={name: float(value) for name, value in (tensors | shares).items() if value is not None},
            vectors={
                "class_mean_norms": observation.by_class(centred.norm(dim=1)),
                "counts": observation.by_class(moments.counts.to(centred.dtype)),
            },
            matrices=matrices,
        )

    def draw(self, folder: Path) -> None:
        from nc_callbacks.figures import save_collapse_figures

        save_collapse_figures(self.history, self.latest, folder, self.prefix)
