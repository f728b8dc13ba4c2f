"""The metrics of `NeuralCollapse`."""

from __future__ import annotations

import math
from functools import partial

from nc_callbacks.metrics.registry import SHARE, Metric

INF = math.inf
PAPYAN, ZHU, WU, AMMAR = "Papyan et al. 2020", "Zhu et al. 2021", "Wu & Papyan 2024", "Ammar et al. 2024"

_row = partial(Metric, callback="NeuralCollapse")
_falls = partial(_row, range=(0, INF), ideal=0, toward="down", log=True)
_error = partial(
    _falls,
    unit="squared error",
    definition="parts of the squared error around least squares, with `mse_weight_decay=`",
    source="Han et al. 2021",
    on_demand="mse_weight_decay",
)
_ERRORS = "Within-class variability: standard errors"
_doubt = partial(
    _falls,
    section="NC1",
    panel="Within-class variability without the bias of few samples",
    layers=True,
    definition="without the bias of few samples a class; standard errors, with `standard_errors=True`",
    source="docs/papers.md",
    on_demand="standard_errors",
)
_share = partial(_row, unit=SHARE, range=(0, 1))

HE = "He & Su 2023"
_LAW = "tr(Σ_W Σ_B'⁺), class means weighted by their samples"
_DEPTH = "slope and R² of log D over at least two further `layers` and the classifier's input"

NC1 = (
    _falls(
        "nc1", "NC1", "Within-class variability", "tr(Σ_W Σ_B⁺)/k", layers=True,
        definition="tr(Σ_W Σ_B⁺) / k", source=PAPYAN, title="NC1: tr(Σ_W Σ_B⁺) / k",
    ),
    _falls(
        "nc1_quotient", "NC1", "Within-class variability", "tr Σ_W / tr Σ_B", layers=True,
        definition="tr Σ_W / tr Σ_B", source="Tirer et al. 2023", projected=True, title="NC1: tr Σ_W / tr Σ_B",
    ),
    _falls(
        "nc1_cdnv", "NC1", "Within-class variability", "class-distance normalised variance", layers=True,
        definition="mean over c < c' of (v_c + v_c') / (2 ‖m_c − m_c'‖²)", source="Galanti et al. 2021",
        projected=True, title="NC1: class-distance normalised variance",
    ),
    _falls(
        "class_separation", "NC1", "Class separation D", "D", layers=True, definition=_LAW, source=HE,
        title="Class separation D = tr(Σ_W Σ_B'⁺)",
    ),
    _row(
        "class_separation_slope", "NC1", "Class separation over depth: slope of log D", "log D a layer",
        "log D a layer", definition=_DEPTH, source=HE, on_demand="layers",
        title="Class separation over depth: slope of log D",
    ),
    _row(
        "class_separation_fit", "NC1", "Class separation over depth: R² of the line", "R²", range=(0, 1),
        definition=_DEPTH, source=HE, on_demand="layers", title="Class separation over depth: R² of the line",
    ),
    _doubt(
        "nc1_corrected", label="tr(Σ_W Σ_B⁺)/k", error="nc1_error", title="NC1 without the bias of few samples",
    ),
    _doubt(
        "nc1_cdnv_corrected", label="class-distance normalised variance", error="nc1_cdnv_error",
        title="NC1: class-distance normalised variance without the bias of few samples",
    ),
    _doubt("nc1_error", panel=_ERRORS, label="tr(Σ_W Σ_B⁺)/k", toward="none", ideal=None, title="NC1: standard error"),
    _doubt(
        "nc1_cdnv_error", panel=_ERRORS, label="class-distance normalised variance", toward="none", ideal=None,
        title="NC1: standard error of the class-distance normalised variance",
    ),
    _error("mse_nc1", "NC1", "Squared error: L_NC1", "L_NC1", title="Squared error: L_NC1"),
)  # fmt: skip

_ETF = "‖M Mᵀ/‖M Mᵀ‖ − E‖; same for W"
_NORMS = "std / mean of ‖μ_c‖, of ‖w_c‖"
_ANGLES = "mean over c ≠ c' of |cos(μ_c, μ_c') + 1/(k−1)|; same for w"
_UNIFORM = "mean and variance over c < c' of log(1/‖μ̂_c − μ̂_c'‖), μ̂ = μ/‖μ‖"

SELI = "Thrampoulidis et al. 2022"
_SELI = "‖M Mᵀ/‖M Mᵀ‖ − S⁺/‖S⁺‖‖, ‖W Wᵀ/‖W Wᵀ‖ − S/‖S‖‖, S = (P diag(n_c) P)^½, with `unbalanced=True`"

NC2 = (
    _falls(
        "nc2_etf", "NC2", "Distance to the simplex ETF", "class means", layers=True,
        definition=_ETF, source=ZHU, projected=True, title="NC2: distance of class means to the ETF",
    ),
    _falls(
        "nc2_etf_weights", "NC2", "Distance to the simplex ETF", "weights",
        definition=_ETF, source=ZHU, title="NC2: distance of weights to the ETF",
    ),
    _falls(
        "nc2_equinorm", "NC2", "Spread of norms (std / mean)", "class means", layers=True,
        definition=_NORMS, source=PAPYAN, projected=True, title="NC2: spread of class-mean norms",
    ),
    _falls(
        "nc2_equinorm_weights", "NC2", "Spread of norms (std / mean)", "weights",
        definition=_NORMS, source=PAPYAN, title="NC2: spread of weight norms",
    ),
    _falls(
        "nc2_equiangularity", "NC2", "Deviation of cosines from −1/(k−1)", "class means", layers=True, range=(0, 2),
        definition=_ANGLES, source=PAPYAN, projected=True, title="NC2: equiangularity of class means",
    ),
    _falls(
        "nc2_equiangularity_weights", "NC2", "Deviation of cosines from −1/(k−1)", "weights", range=(0, 2),
        definition=_ANGLES, source=PAPYAN, title="NC2: equiangularity of weights",
    ),
    _row(
        "nc2_equiangularity_signed", "NC2", "Deviation of cosines, signed", "class means", layers=True, range=(-1, 2),
        ideal=0, toward="ideal", definition="the same without the absolute value", source="Lindegaard 2021",
        projected=True, title="NC2: equiangularity of class means, signed",
    ),
    _row(
        "nc2_uniformity", "NC2", "Uniformity, mean of log(1/distance)", "class means", layers=True,
        range=(-math.log(2), INF), ideal=lambda k, p: -0.5 * math.log(2 * k / (k - 1)), toward="ideal",
        ideal_text="−½ log(2k/(k−1))", definition=_UNIFORM, source=f"Liu et al. 2023; {WU}",
        projected=True, title="NC2: uniformity of class means",
    ),
    _falls(
        "nc2_uniformity_var", "NC2", "Uniformity, variance", "class means", layers=True,
        definition=_UNIFORM, source=f"Liu et al. 2023; {WU}", projected=True, title="NC2: variance of the uniformity",
    ),
    _falls(
        "nc2_seli", "NC2", "Distance to the interpolation of unbalanced labels", "class means", range=(0, 2),
        definition=_SELI, source=SELI, on_demand="unbalanced", title="NC2: distance of class means to SELI",
    ),
    _falls(
        "nc2_seli_weights", "NC2", "Distance to the interpolation of unbalanced labels", "weights", range=(0, 2),
        definition=_SELI, source=SELI, on_demand="unbalanced", title="NC2: distance of weights to SELI",
    ),
    _row(
        "minority_collapse", "NC2", "Cosines of the rows of rare classes", "mean over pairs", "cosine", range=(-1, 1),
        definition="mean cosine of weight rows of classes with less than half the median count, with `unbalanced=True`",
        source="Fang et al. 2021", on_demand="unbalanced", title="NC2: rows of rare classes that fall together",
    ),
    _error("mse_nc23", "NC2", "Squared error: L_NC2/3", "L_NC2/3", title="Squared error: L_NC2/3"),
    _row(
        "class_mean_cosines", "NC2", "Cosines of the centred class means", "cos(μ_c, μ_c')", "cosine", layers=True,
        axis="class × class", range=(-1, 1), ideal=lambda k, p: -1 / (k - 1), toward="ideal",
        ideal_text="−1/(k−1) off the diagonal", definition="cos(μ_c, μ_c'), up to 1,000 classes",
        projected=True, title="cos(μ_c, μ_c')",
    ),
)  # fmt: skip

NC3 = (
    _falls(
        "nc3", "NC3", "Weights and class means", "‖W/‖W‖ − M/‖M‖‖²", range=(0, 4),
        definition="‖W/‖W‖ − M/‖M‖‖²", source=PAPYAN, title="NC3: distance of weights and class means",
    ),
    _falls(
        "nc3_etf", "NC3", "Weights and class means", "W Mᵀ to the ETF", range=(0, 2),
        definition="‖W Mᵀ/‖W Mᵀ‖ − E‖", source=ZHU, title="NC3: distance of W Mᵀ to the ETF",
    ),
    _falls(
        "nc3_uniform_duality", "NC3", "Variance of cos(w_c, μ_c) over classes", "duality", range=(0, 1),
        definition="variance over c of cos(w_c, μ_c)", source=WU, title="NC3: variance of cos(w, μ) over classes",
    ),
    _falls(
        "nc3_bias", "NC3", "Bias and global mean", "‖W m + b‖ / ‖W μ_c‖", definition="‖W m + b‖ / mean_c ‖W μ_c‖",
        source=ZHU, title="NC3: what the bias leaves of the global mean",
    ),
    _error("mse_perp", "NC3", "Squared error: L_⊥", "L_⊥", title="Squared error: L_⊥"),
)  # fmt: skip

_ACCURACIES = "accuracy of the classifier, of the nearest class mean"

NC4 = (
    _share(
        "nc4", "NC4", "Classifier ≠ nearest class mean", "disagree", ideal=0, toward="down", log=True,
        definition="share of samples where classifier and nearest class mean disagree", source=PAPYAN,
        projected=True, title="NC4: classifier ≠ nearest class mean",
    ),
    _share(
        "accuracy", "NC4", "Accuracy", "classifier", ideal=1, toward="up",
        definition=_ACCURACIES, source=PAPYAN, projected=True, title="Accuracy of the classifier",
    ),
    _share(
        "ncc_accuracy", "NC4", "Accuracy", "nearest class mean", ideal=1, toward="up", layers=True,
        definition=_ACCURACIES, source=PAPYAN, projected=True, title="Accuracy of the nearest class mean",
    ),
    _share(
        "lda_accuracy", "NC4", "Accuracy", "whitened class means", ideal=1, toward="up", layers=True,
        definition="accuracy of the class means whitened by Σ_W, with `lda_accuracy=True`", source="Fisher 1936",
        on_demand="lda_accuracy", title="Accuracy of the whitened class means",
    ),
    _row(
        "tpt", "NC4", "Terminal phase of training", "terminal phase", "1 where the training error is 0",
        range=(0, 1), ideal=1, toward="up", splits=("train",),
        definition="1 where the training error is 0, on `train`", source=PAPYAN,
        projected=True, title="Terminal phase of training",
    ),
    _row(
        "nc5", "NC4", "NC5: class means and out-of-distribution mean", "cosine", "cosine", layers=True,
        range=(0, 1), ideal=0, toward="down", on_demand="ood_loader",
        definition="mean_c |cos(m_c, m_ood)|, with `ood_loader=`", source=AMMAR,
        projected=True, title="NC5: class means and out-of-distribution mean",
    ),
)  # fmt: skip

_OOD = {
    "energy": ("log Σ exp f", "Liu et al. 2020", True),
    "nearest_mean": ("−min_c ‖h − m_c‖", "Euclidean distance", True),
    "nci": ("w_ĉᵀ(h − m)/‖h − m‖", "Liu & Qin 2025", False),
    "neco": ("‖P(h − m)‖/‖h − m‖", AMMAR, False),
    "mahalanobis": ("−min_c (h − m_c)ᵀΣ⁻¹(h − m_c)", "Lee et al. 2018", False),
}
"""Each score: its formula, its source, and whether a projection of the features keeps it."""

_separation = partial(_share, section="OOD", on_demand="ood_scores")
_TOLD = "AUROC; false positive rate at 95 % true positive rate: {} of `ood_loader`'s samples, with `ood_scores=True`"

OOD = (
    *(
        _separation(
            f"ood_auroc_{name}", panel="AUROC against out-of-distribution data", label=text, source=source,
            definition=_TOLD.format(text), projected=kept, toward="up", ideal=1,
            title=f"Out of distribution: AUROC of {text}",
        )
        for name, (text, source, kept) in _OOD.items()
    ),
    *(
        _separation(
            f"ood_fpr_{name}", panel="False positive rate at 95 % true positive rate", label=text, source=source,
            definition=_TOLD.format(text), projected=kept, toward="down", ideal=0,
            title=f"Out of distribution: false positive rate of {text}",
        )
        for name, (text, source, kept) in _OOD.items()
    ),
)  # fmt: skip

VECTORS = (
    _row(
        "class_mean_norms", "NC2", "Norms of the centred class means", "‖μ_c‖", "features", layers=True, axis="class",
        range=(0, INF), definition="‖μ_c‖", projected=True, title="Norms of the centred class means",
    ),
    _row(
        "counts", "NC2", unit="samples", label="n_c", layers=True, axis="class", range=(0, INF),
        definition="samples of each class", projected=True, title="Samples of each class",
    ),
)  # fmt: skip

ROWS = (*NC1, *NC2, *NC3, *NC4, *OOD)

TEXTS = {
    "NC1": "Variability within classes, beside the distances between class means. 0 at collapse.",
    "NC2": "How near class means and weights are to a simplex: equal norms and equal angles. 0 at collapse.",
    "NC3": "How far the weights are from the centred class means, both scaled to norm 1. 0 at collapse.",
    "NC4": "Whether the classifier decides like the nearest class mean. "
    "The share where they disagree is 0 at collapse.",
    "OOD": "How well scores of single samples, from the same moments, tell out-of-distribution data from the split.",
}
"""Of the sections, by title."""
