"""The callback that measures neural collapse, NC1 to NC4."""

from __future__ import annotations

from pathlib import Path

import nc_callbacks.functional as F_nc
from nc_callbacks.callbacks.base import CollapseCallback, Measurement
from nc_callbacks.callbacks.look import Needs, Observation

MAX_CLASSES_OF_MATRIX = 1_000
"""The k × k cosines are kept in `latest` up to this number of classes."""


class NeuralCollapse(CollapseCallback):
    """Measure neural collapse after training epochs and log it as ``nc/{split}/{name}``.

    Numbers, all dimensionless (formulas and sources in `nc_callbacks.functional`): ``nc1``, ``nc1_quotient``,
    ``nc1_cdnv``; ``nc2_equinorm``, ``nc2_equiangularity``, ``nc2_equiangularity_signed``, ``nc2_etf`` of the centred
    class means; ``ncc_accuracy``; and at the classifier ``nc2_equinorm_weights``, ``nc2_equiangularity_weights``,
    ``nc2_etf_weights``, ``nc3``, ``nc3_etf``, ``nc3_uniform_duality``, ``nc4``, ``accuracy`` and, on the training
    split, ``tpt`` (1 where the training error is 0, else 0). ``nc4`` and ``ncc_accuracy`` use the class means of the
    training split on every split. Layers other than the classifier's input log as ``nc/{split}/{layer}/{name}``.

    Vectors in `latest` and `history`: ``class_mean_norms`` (‖μ_c‖) and ``counts``. Matrix in `latest`:
    ``class_mean_cosines`` (cos(μ_c, μ_c'), up to 1,000 classes). Classes without samples are left out.

    The arguments are those of `nc_callbacks.callbacks.base.CollapseCallback`.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(max_epochs=3, callbacks=[NeuralCollapse(splits=["train", "val"])], logger=False)
    """

    @property
    def needs(self) -> Needs:
        return Needs(self.layers, covariance="pooled", layer_covariance="pooled")

    def measure(self, observation: Observation) -> Measurement:
        moments = observation.moments
        assert moments.within is not None
        means = moments.means
        centre = moments.sample_mean if self.global_mean == "samples" else None
        centred = moments.centred_means if centre is None else means - centre
        tensors = {
            "nc1": F_nc.nc1(moments.within, means, centre),
            "nc1_quotient": F_nc.nc1_quotient(moments.within, means, centre),
            "nc1_cdnv": F_nc.nc1_cdnv(moments.traces, means),
            "nc2_equinorm": F_nc.nc2_equinorm(centred),
            "nc2_equiangularity": F_nc.nc2_equiangularity(centred),
            "nc2_equiangularity_signed": F_nc.nc2_equiangularity(centred, signed=True),
            "nc2_etf": F_nc.nc2_etf(centred),
        }
        numbers = {"ncc_accuracy": observation.nearest_mean_accuracy}
        if (classifier := observation.classifier) is not None:
            weight = classifier.weight
            tensors |= {
                "nc2_equinorm_weights": F_nc.nc2_equinorm(weight),
                "nc2_equiangularity_weights": F_nc.nc2_equiangularity(weight),
                "nc2_etf_weights": F_nc.nc2_etf(weight),
                "nc3": F_nc.nc3(weight, means, centre),
                "nc3_etf": F_nc.nc3_etf(weight, means, centre),
                "nc3_uniform_duality": F_nc.nc3_uniform_duality(weight, means, centre),
            }
            numbers |= {"nc4": classifier.mismatch, "accuracy": classifier.accuracy}
            if observation.split == "train":
                numbers["tpt"] = float(classifier.accuracy == 1)
        matrices = {}
        if len(centred) <= MAX_CLASSES_OF_MATRIX:
            unit = centred / centred.norm(dim=1, keepdim=True)
            matrices["class_mean_cosines"] = unit @ unit.T
        return Measurement(
            numbers={name: float(value) for name, value in tensors.items()} | numbers,
            vectors={"class_mean_norms": centred.norm(dim=1), "counts": moments.counts},
            matrices=matrices,
        )

    def draw(self, folder: Path) -> None:
        from nc_callbacks.figures import save_collapse_figures

        save_collapse_figures(self.history, self.latest, folder, self.prefix)
