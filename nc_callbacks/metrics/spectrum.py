"""The metrics of `FeatureSpectrum`."""

from __future__ import annotations

import math
from functools import partial

from nc_callbacks.metrics.registry import PURE, Metric

STABLE = "Rudelson & Vershynin 2007"

_row = partial(Metric, section="Spectrum", callback="FeatureSpectrum", source="Lindegaard 2021", layers=True)
_vector = partial(_row, axis="direction")

ROWS = (
    _row(
        "spectrum_effective_rank", panel="Effective rank", label="effective rank", unit="directions",
        range=(1, math.inf), ideal=lambda k, p: min(k - 1, p), ideal_text="k−1", toward="ideal",
        definition="exp(−Σ q log q), q the shares of explained variance", title="Effective rank",
    ),
    _row(
        "spectrum_rankme", panel="Effective rank", label="RankMe", unit="directions", source="Garrido et al. 2023",
        range=(1, math.inf), definition="exp(−Σ q log q), q the shares of singular values", title="RankMe",
    ),
    _row(
        "spectrum_stable_rank", panel="Effective rank", label="stable rank", unit="directions", source=STABLE,
        range=(1, math.inf), ideal=lambda k, p: min(k - 1, p), ideal_text="k−1", toward="ideal",
        definition="Σλ/λ₁", title="Stable rank",
    ),
    _row(
        "spectrum_stable_rank_weights", panel="Effective rank", label="stable rank, weights", unit="directions",
        source=STABLE, layers=False, range=(1, math.inf), ideal=lambda k, p: min(k - 1, p),
        ideal_text="k−1", toward="ideal", definition="‖W‖_F²/‖W‖²", title="Stable rank of the weights",
    ),
    _row(
        "spectrum_decay", panel="Decay of the spectrum", label="α", source="Agrawal et al. 2022",
        definition="α of λ_j ∝ j^(−α), least squares on log–log", title="Decay of the spectrum",
    ),
    _row(
        "spectrum_decay_fit", panel="Decay of the spectrum: R² of the fit", label="R²", range=(0, 1),
        source="Agrawal et al. 2022", definition="R² of that fit", title="Decay of the spectrum: R²",
    ),
    _row(
        "spectrum_share", panel="Variance explained by the first k−1", label="share", unit="share of variance",
        range=(0, 1), ideal=1, toward="up", definition="share of variance that the first k−1 directions explain",
        title="Variance explained by the first k−1",
    ),
    _vector(
        "explained_variance", unit="share of variance", label="share", range=(0, 1),
        definition="λ_j/Σλ of the second moment, largest first", title="Explained variance",
    ),
    _vector(
        "singular_values", panel="Singular values (squares add up to 1)", unit=PURE, log=True, range=(0, math.inf),
        derived=True, definition="singular values of the n × p activation matrix, in `latest` alone",
        title="Singular values",
    ),
    _vector(
        "weight_singular_values", panel="Singular values of the weights", unit="weights", label="σ_j", layers=False,
        source="", range=(0, math.inf), definition="singular values of W, largest first, 0 beyond its rows",
        title="Singular values of the weights",
    ),
    _row(
        "effective_rank_per_class", panel="Effective rank of each class", label="effective rank", unit="directions",
        axis="class", range=(1, math.inf), on_demand="by_class",
        definition="`spectrum_effective_rank` of C_c, with `by_class=True`", title="Effective rank of each class",
    ),
    _vector(
        "cumulative_explained_variance", panel="Cumulative explained variance", unit="share of variance", range=(0, 1),
        derived=True, definition="cumulative sum of `explained_variance`, in `latest` alone",
        title="Cumulative explained variance",
    ),
)  # fmt: skip

TEXTS = {
    "Spectrum": "How many directions the features use. At collapse the class means alone are left: k−1 of them.",
}
