"""The metrics as a reader meets them: sections, panels, what each is called and where it goes at collapse."""

from __future__ import annotations

from dataclasses import dataclass

SPLITS = ("train", "val", "test")
"""The splits of log keys."""


@dataclass(frozen=True)
class Metric:
    """One number of a callback."""

    name: str
    """Last part of its log keys."""
    label: str
    """Short, beside other metrics of its panel."""
    on_demand: bool = False
    """Logged only where an argument of its callback asks for it."""


@dataclass(frozen=True)
class Panel:
    """Metrics that share a unit and are compared."""

    title: str
    unit: str
    metrics: tuple[Metric, ...]
    log: bool = False
    """Whether a logarithmic axis suits it: positive, and vanishing as training goes on."""


@dataclass(frozen=True)
class Section:
    """A chapter of the page and of the dashboard."""

    title: str
    text: str
    """What it measures and what it shows at collapse, in a sentence."""
    panels: tuple[Panel, ...]

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return tuple(metric for panel in self.panels for metric in panel.metrics)


PURE, SHARE, SQUARED = "dimensionless", "share of samples", "squared features"

SECTIONS = (
    Section(
        "NC1",
        "Variability within classes, beside the distances between class means. 0 at collapse.",
        (
            Panel(
                "Within-class variability",
                PURE,
                (
                    Metric("nc1", "tr(Σ_W Σ_B⁺)/k"),
                    Metric("nc1_quotient", "tr Σ_W / tr Σ_B"),
                    Metric("nc1_cdnv", "class-distance normalised variance"),
                ),
                log=True,
            ),
            Panel("Squared error: L_NC1", "squared error", (Metric("mse_nc1", "L_NC1", on_demand=True),), log=True),
        ),
    ),
    Section(
        "NC2",
        "How near class means and weights are to a simplex: equal norms and equal angles. 0 at collapse.",
        (
            Panel(
                "Distance to the simplex ETF",
                PURE,
                (Metric("nc2_etf", "class means"), Metric("nc2_etf_weights", "weights")),
                log=True,
            ),
            Panel(
                "Spread of norms (std / mean)",
                PURE,
                (Metric("nc2_equinorm", "class means"), Metric("nc2_equinorm_weights", "weights")),
                log=True,
            ),
            Panel(
                "Deviation of cosines from −1/(k−1)",
                PURE,
                (Metric("nc2_equiangularity", "class means"), Metric("nc2_equiangularity_weights", "weights")),
                log=True,
            ),
            Panel("Deviation of cosines, signed", PURE, (Metric("nc2_equiangularity_signed", "class means"),)),
            Panel("Uniformity, mean of log(1/distance)", PURE, (Metric("nc2_uniformity", "class means"),)),
            Panel("Uniformity, variance", PURE, (Metric("nc2_uniformity_var", "class means"),), log=True),
            Panel(
                "Squared error: L_NC2/3", "squared error", (Metric("mse_nc23", "L_NC2/3", on_demand=True),), log=True
            ),
        ),
    ),
    Section(
        "NC3",
        "How far the weights are from the centred class means, both scaled to norm 1. 0 at collapse.",
        (
            Panel(
                "Weights and class means",
                PURE,
                (Metric("nc3", "‖W/‖W‖ − M/‖M‖‖²"), Metric("nc3_etf", "W Mᵀ to the ETF")),
                log=True,
            ),
            Panel(
                "Variance of cos(w_c, μ_c) over classes", PURE, (Metric("nc3_uniform_duality", "duality"),), log=True
            ),
            Panel("Squared error: L_⊥", "squared error", (Metric("mse_perp", "L_⊥", on_demand=True),), log=True),
        ),
    ),
    Section(
        "NC4",
        "Whether the classifier decides like the nearest class mean. The share where they disagree is 0 at collapse.",
        (
            Panel("Classifier ≠ nearest class mean", SHARE, (Metric("nc4", "disagree"),), log=True),
            Panel("Accuracy", SHARE, (Metric("accuracy", "classifier"), Metric("ncc_accuracy", "nearest class mean"))),
            Panel("Terminal phase of training", "1 where the training error is 0", (Metric("tpt", "terminal phase"),)),
            Panel(
                "NC5: class means and out-of-distribution mean", "cosine", (Metric("nc5", "cosine", on_demand=True),)
            ),
        ),
    ),
    Section(
        "W–M̄",
        "Whether each weight row points along its centred class mean (cosine 1), and whether the representations are "
        "near-optimal: class means nearly orthogonal (μ₂ near 0), covariances nearly isotropic (σ₂ near 0).",
        (
            Panel(
                "Cosine of weights and centred class means",
                "cosine",
                (
                    Metric("wm_cosine", "mean over classes"),
                    Metric("wm_cosine_min", "least"),
                    Metric("wm_cosine_max", "largest"),
                ),
            ),
            Panel("Accuracy with M̄ for W", SHARE, (Metric("accuracy_centred_means", "centred class means"),)),
            Panel(
                "μ₁ and μ₂: products of class means",
                SQUARED,
                (Metric("mu1", "μ₁ = ‖m_c‖²"), Metric("mu2", "μ₂ = m_cᵀm_c'")),
            ),
            Panel("μ₂ / μ₁", PURE, (Metric("mu_ratio", "μ₂ / μ₁"),)),
            Panel(
                "σ²₁ and σ²₂: class covariances",
                SQUARED,
                (Metric("sigma1", "σ²₁, diagonal"), Metric("sigma2", "σ²₂, off")),
            ),
            Panel("σ²₂ / σ²₁", PURE, (Metric("sigma_ratio", "σ²₂ / σ²₁"),)),
            Panel("Distance to Assumption A2", PURE, (Metric("a2_residual", "residual", on_demand=True),)),
            Panel(
                "Distance to Proposition 2", PURE, (Metric("implicit_residual", "residual", on_demand=True),), log=True
            ),
            Panel("Cosine to Proposition 2", "cosine", (Metric("implicit_cosine", "cosine", on_demand=True),)),
        ),
    ),
    Section(
        "SQI",
        "Symmetric quasi-interpolation of the labels: ε is what an output lacks at the label, ε̃ what it has elsewhere. "
        "On average ε = (k−1) ε̃ (ratio 1, gap 0); in the strict form the spreads are 0 as well.",
        (
            Panel(
                "Average errors",
                "output (a label is 1)",
                (Metric("sqi_epsilon", "ε"), Metric("sqi_epsilon_off", "ε̃")),
                log=True,
            ),
            Panel("Ratio ε / ((k−1) ε̃)", PURE, (Metric("sqi_ratio", "ratio"),)),
            Panel("Gap ε − (k−1) ε̃", "output (a label is 1)", (Metric("sqi_gap", "gap"),)),
            Panel(
                "Spread relative to the mean",
                PURE,
                (
                    Metric("sqi_epsilon_rel_std", "ε"),
                    Metric("sqi_epsilon_off_rel_std", "ε̃"),
                    Metric("sqi_epsilon_off_sample_rel_std", "ε̃ within a sample"),
                ),
                log=True,
            ),
            Panel(
                "Spread",
                "output (a label is 1)",
                (Metric("sqi_epsilon_std", "ε"), Metric("sqi_epsilon_off_std", "ε̃")),
                log=True,
            ),
        ),
    ),
    Section(
        "Spectrum",
        "How many directions the features use. At collapse the class means alone are left: k−1 of them.",
        (
            Panel("Effective rank", "directions", (Metric("spectrum_effective_rank", "effective rank"),)),
            Panel("Variance explained by the first k−1", "share of variance", (Metric("spectrum_share", "share"),)),
        ),
    ),
)
"""In the order of the page and of the dashboard."""

METRICS = {metric.name: metric for section in SECTIONS for metric in section.metrics}
"""Each metric by its name."""


@dataclass(frozen=True, order=True)
class Place:
    """What a log key says."""

    name: str
    """The metric; of keys in another form, the whole key."""
    split: str = ""
    layer: str = ""
    """Empty at the classifier's input."""
    prefix: str = ""


def parse(key: str) -> Place:
    """Read a log key.

    Example:
        >>> parse("nc/train/backbone.3/nc1")
        Place(name='nc1', split='train', layer='backbone.3', prefix='nc')
        >>> parse("val/loss"), parse("lr")
        (Place(name='loss', split='val', layer='', prefix=''), Place(name='lr', split='', layer='', prefix=''))
    """
    parts = key.split("/")
    if len(parts) == 2 and parts[0] in SPLITS:
        return Place(parts[1], parts[0])
    if len(parts) >= 3 and parts[1] in SPLITS:
        return Place(parts[-1], parts[1], "/".join(parts[2:-1]), parts[0])
    return Place(key)
