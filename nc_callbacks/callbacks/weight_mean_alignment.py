"""The callback that measures how far the classifier's weights line up with the centred class means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

import nc_callbacks.functional as F_nc
from nc_callbacks.callbacks.arguments import BatchFn, Epochs, ForwardFn, GlobalMean, Mode, Split
from nc_callbacks.callbacks.base import CollapseCallback
from nc_callbacks.callbacks.measurement import Measurement
from nc_callbacks.engine.observation import ClassifierObservation, Observation
from nc_callbacks.engine.request import LayerNeeds, Needs
from nc_callbacks.probe import Pool
from nc_callbacks.statistics import ClassMoments, Covariance


class WeightMeanAlignment(CollapseCallback):
    """Measure W against M̄, and the near-optimality of the representations (Seddik & Tamaazousti 2022).

    Numbers, logged as ``nc/{split}/{name}``: at the classifier ``wm_cosine``, ``wm_cosine_min``, ``wm_cosine_max``
    (mean, least and largest over c of Cos(w_c, μ_c), in [−1, 1]), ``accuracy`` and ``accuracy_centred_means`` (W
    replaced by the centred class means of the training split, no bias; shares); at every layer ``mu1``, ``mu2``,
    ``sigma1``, ``sigma2`` (in units of the squared features), ``mu_ratio``, ``sigma_ratio`` (dimensionless); on demand
    ``a2_residual`` and ``implicit_residual`` = ‖Ŵ − W‖_F/‖W‖_F, ``implicit_cosine`` = mean over c of Cos(ŵ_c, w_c) of
    the weights Ŵ that Proposition 2 implies.

    Vectors in `latest` and `history`, one entry per class: ``wm_cosine_per_class``, ``mu1_per_class`` (‖m_c‖²),
    ``mu2_per_class`` (mean over c' of m_cᵀm_c'), ``sigma1_per_class``, ``sigma2_per_class``.

    By default only O(kp) numbers are gathered. The last three numbers need the covariance of every class (k × p × p).

    Args:
        a2_residual: Measure how far the class covariances are from Assumption A2.
        implicit: Measure how far W is from Proposition 2, in its ``"full"`` or ``"published"`` form (see
            `nc_callbacks.functional.implicit_weights`). Keeps k³ numbers.
        standard_errors: Measure ``wm_cosine_corrected``, without the bias of few samples a class, and its standard
            error ``wm_cosine_error``. Takes the pooled p × p covariance.

    The other arguments are those of all callbacks: see `nc_callbacks.callbacks.base.CollapseCallback`.

    Raises:
        ValueError: An argument is out of its range; in `setup` and before the first epoch, what is wrong with the
            model or the data.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(max_epochs=3, callbacks=[WeightMeanAlignment(splits=["train", "val"])], logger=False)
    """

    names = frozenset({"accuracy"})

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
        a2_residual: bool = False,
        implicit: Literal["full", "published"] | None = None,
        standard_errors: bool = False,
    ) -> None:
        if implicit not in (None, "full", "published"):
            raise ValueError(f'implicit must be None, "full" or "published", got {implicit!r}.')
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
        self.a2_residual = a2_residual
        self.implicit = implicit
        self.standard_errors = standard_errors

    @property
    def needs(self) -> Needs:
        """What a look has to gather for this callback."""
        covariance: Covariance = "pooled" if self.standard_errors else "none"
        if self.a2_residual or self.implicit:
            covariance = "per_class"
        layers = dict.fromkeys(self.layers, LayerNeeds())
        softmax = self.implicit is not None
        return Needs(LayerNeeds(covariance), layers, accuracy=True, centred_means=True, softmax=softmax)

    @property
    def settings(self) -> tuple[Any, ...]:
        """Arguments that change values: two callbacks with the same keys must have the same."""
        return (*super().settings, self.implicit, self.standard_errors)

    def measure(self, observation: Observation) -> Measurement:
        """The metrics of one layer on one split."""
        moments, classifier = observation.moments, observation.classifier
        near = F_nc.near_optimality(moments)
        numbers = {
            "mu1": near.mu1,
            "mu2": near.mu2,
            "mu_ratio": near.mu_ratio,
            "sigma1": near.sigma1,
            "sigma2": near.sigma2,
            "sigma_ratio": near.sigma_ratio,
        }
        vectors = {
            "mu1_per_class": near.squared_norms,
            "mu2_per_class": near.mean_products,
            "sigma1_per_class": near.variances,
            "sigma2_per_class": near.covariances,
        }
        shares: dict[str, float | None] = {}
        if classifier is not None:
            if classifier.weight is not None:
                centre = moments.sample_mean if self.global_mean == "samples" else None
                cosines = F_nc.wm_cosine(classifier.weight, moments.means, centre, moments.precision)
                numbers |= {"wm_cosine": cosines.mean(), "wm_cosine_min": cosines.min(), "wm_cosine_max": cosines.max()}
                vectors["wm_cosine_per_class"] = cosines
                if self.standard_errors:
                    numbers |= _with_error(classifier.weight, moments)
            shares = {"accuracy": classifier.accuracy, "accuracy_centred_means": classifier.centred_mean_accuracy}
            if self.a2_residual:
                numbers["a2_residual"] = F_nc.a2_residual(moments)
            if self.implicit is not None and classifier.weight is not None:
                shares |= self._implicit(classifier, moments)
        vectors = {name: observation.by_class(vector) for name, vector in vectors.items()}
        found = {name: float(value) for name, value in numbers.items()}
        found |= {name: value for name, value in shares.items() if value is not None}
        return Measurement(found, vectors, {})

    def _implicit(self, classifier: ClassifierObservation, moments: ClassMoments) -> dict[str, float]:
        assert classifier.expectations is not None
        assert self.implicit is not None
        assert classifier.weight is not None
        weight = classifier.weight.to(moments.means.dtype)
        implied = F_nc.implicit_weights(weight, moments, classifier.expectations, self.implicit)
        cosines = (implied * weight).sum(1) / (implied.norm(dim=1) * weight.norm(dim=1))
        return {
            "implicit_residual": float((implied - weight).norm() / weight.norm()),
            "implicit_cosine": float(cosines.mean()),
        }

    def draw(self, folder: Path, formats: Sequence[str] = ("png",)) -> None:
        """Save this callback's figures in the folder."""
        from nc_callbacks.figures import save_alignment_figures

        save_alignment_figures(self.history, self.latest, folder, self.prefix, formats)


def _with_error(weight: Tensor, moments: ClassMoments) -> dict[str, Tensor]:
    def mean_cosine(of: ClassMoments) -> Tensor:
        return F_nc.wm_cosine_corrected(weight.clone(), of).mean()

    # The same whether or not another callback has asked for the covariance of each class.
    pooled = replace(moments, covariances=None)
    return {
        "wm_cosine_corrected": mean_cosine(pooled),
        "wm_cosine_error": F_nc.standard_error(mean_cosine, pooled),
    }
