"""The metrics of `WeightMeanAlignment`."""

from __future__ import annotations

import math
from functools import partial

from nc_callbacks.metrics.registry import SHARE, SQUARED, Metric

SECTION = "W–M̄"
INF = math.inf
SEDDIK = "Seddik & Tamaazousti 2022"

_row = partial(Metric, section=SECTION, callback="WeightMeanAlignment", source=SEDDIK)
_cosine = partial(_row, unit="cosine", range=(-1, 1), ideal=1, toward="up")
_squared = partial(_row, unit=SQUARED, layers=True)

_WM, _COSINES = "Cosine of weights and centred class means", "mean, least and largest over c of cos(w_c, μ_c)"
_DOUBT = "`wm_cosine` without the bias of few samples a class; its standard error, with `standard_errors=True`"
_MU = "mean of ‖m_c‖²; mean over c ≠ c' of m_cᵀm_c'; mu2/mu1"
_SIGMA = "mean diagonal and mean off-diagonal entry of C_c, averaged over c; sigma2/sigma1"
_MUS, _SIGMAS = "μ₁ and μ₂: products of class means", "σ²₁ and σ²₂: class covariances"
_IMPLICIT = "how far W is from Proposition 2, with `implicit=` full or published (docs/papers.md)"
_MU_OF_EACH, _SIGMA_OF_EACH = "‖m_c‖²; mean over c' of m_cᵀm_c'", "mean diagonal and mean off-diagonal entry of C_c"

ROWS = (
    _cosine("wm_cosine", panel=_WM, label="mean over classes", definition=_COSINES, title=_WM),
    _cosine("wm_cosine_min", panel=_WM, label="least", definition=_COSINES, title=f"{_WM}, least"),
    _cosine("wm_cosine_max", panel=_WM, label="largest", definition=_COSINES, title=f"{_WM}, largest"),
    _cosine(
        "wm_cosine_corrected", panel=f"{_WM}, without the bias of few samples", label="mean over classes",
        definition=_DOUBT, source="docs/papers.md", on_demand="standard_errors", error="wm_cosine_error",
        title=f"{_WM}, without the bias of few samples",
    ),
    _row(
        "wm_cosine_error", panel=f"{_WM}: standard error", label="of the mean", unit="cosine", range=(0, INF),
        definition=_DOUBT, source="docs/papers.md", on_demand="standard_errors", title=f"{_WM}: standard error",
    ),
    _row(
        "accuracy_centred_means", panel="Accuracy with M̄ for W", label="centred class means", unit=SHARE, range=(0, 1),
        ideal=1, toward="up", definition="accuracy with W replaced by M and no bias",
        projected=True, title="Accuracy with centred class means for W",
    ),
    _squared(
        "mu1", panel=_MUS, label="μ₁ = ‖m_c‖²", range=(0, INF), definition=_MU, projected=True,
        title="μ₁, mean of ‖m_c‖²",
    ),
    _squared(
        "mu2", panel=_MUS, label="μ₂ = m_cᵀm_c'", ideal=0, toward="ideal", definition=_MU,
        projected=True, title="μ₂, mean of m_cᵀm_c'",
    ),
    _row(
        "mu_ratio", panel="μ₂ / μ₁", label="μ₂ / μ₁", layers=True, range=(-1, 1), ideal=0, toward="ideal",
        definition=_MU, projected=True, title="μ₂ / μ₁",
    ),
    _squared("sigma1", panel=_SIGMAS, label="σ²₁, diagonal", range=(0, INF), definition=_SIGMA, title="σ²₁, diagonal"),
    _squared(
        "sigma2", panel=_SIGMAS, label="σ²₂, off", ideal=0, toward="ideal", definition=_SIGMA,
        title="σ²₂, off diagonal",
    ),
    _row(
        "sigma_ratio", panel="σ²₂ / σ²₁", label="σ²₂ / σ²₁", layers=True, range=(-1, 1), ideal=0, toward="ideal",
        definition=_SIGMA, title="σ²₂ / σ²₁",
    ),
    _row(
        "a2_residual", panel="Distance to Assumption A2", label="residual", range=(0, INF), ideal=0, toward="down",
        on_demand="a2_residual",
        definition="mean_c ‖C_c − (σ²₁ I + σ²₂(11ᵀ − I))‖ / ‖C_c‖, with `a2_residual=True`",
        title="Distance to Assumption A2",
    ),
    _row(
        "implicit_residual", panel="Distance to Proposition 2", label="residual", range=(0, INF), ideal=0,
        toward="down", log=True, on_demand="implicit", definition=_IMPLICIT, title="Distance to Proposition 2",
    ),
    _cosine(
        "implicit_cosine", panel="Cosine to Proposition 2", label="cosine", on_demand="implicit", definition=_IMPLICIT,
        title="Cosine to Proposition 2",
    ),
    _cosine(
        "wm_cosine_per_class", panel="Cos(w_c, μ_c) of each class", label="cosine", axis="class",
        over_epochs="Cos(w_c, μ_c) over epochs", definition="cos(w_c, μ_c)", title=_WM,
    ),
    _squared(
        "mu1_per_class", panel="Class means: μ", label="‖m_c‖²", axis="class", range=(0, INF),
        definition=_MU_OF_EACH, projected=True, title="‖m_c‖² of each class",
    ),
    _squared(
        "mu2_per_class", panel="Class means: μ", label="m_cᵀm_c' over c'", axis="class",
        definition=_MU_OF_EACH, projected=True, title="Mean of m_cᵀm_c' over c'",
    ),
    _squared(
        "sigma1_per_class", panel="Class covariances: σ²", label="σ²₁, diagonal", axis="class", range=(0, INF),
        definition=_SIGMA_OF_EACH, title="σ²₁ of each class",
    ),
    _squared(
        "sigma2_per_class", panel="Class covariances: σ²", label="σ²₂, off diagonal", axis="class",
        definition=_SIGMA_OF_EACH, title="σ²₂ of each class",
    ),
)  # fmt: skip

TEXTS = {
    SECTION: "Whether each weight row points along its centred class mean (cosine 1), and whether the representations "
    "are near-optimal: class means nearly orthogonal (μ₂ near 0), covariances nearly isotropic (σ₂ near 0)."
}
