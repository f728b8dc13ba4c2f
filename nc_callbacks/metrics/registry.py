"""The registry: one row per metric, in the sections and panels that show it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from nc_callbacks.metrics.keys import SPLITS

PURE, SHARE, SQUARED = "dimensionless", "share of samples", "squared features"

Axis = Literal["scalar", "class", "direction", "sample", "class × class"]


@dataclass(frozen=True)
class Metric:
    """A number, a vector or a matrix of a callback."""

    name: str
    """Last part of its log keys."""
    section: str = "Further"
    """Title of its section on the page and in the workspace."""
    panel: str = ""
    """Title of the panel that it shares with those it is compared with; one without is shown nowhere."""
    label: str = ""
    """Its symbol, short, beside other metrics of its panel."""
    unit: str = PURE
    definition: str = ""
    """As the table of all metrics has it."""
    source: str = ""
    callback: str = ""
    """The public callback that measures it; of several, the first."""
    title: str = ""
    """Of its own figure."""
    range: tuple[float, float] = (-math.inf, math.inf)
    """Least and largest value that it can have."""
    ideal: float | Callable[[int, int], float] | None = None
    """Value at collapse: a number, or a function of k and p."""
    ideal_text: str = ""
    """The value at collapse where it is a function."""
    toward: Literal["down", "up", "ideal", "none"] = "none"
    """Which way is collapse: the least or the largest value, one between, or none."""
    log: bool = False
    """Whether a logarithmic axis suits it: positive, and vanishing as training goes on."""
    axis: Axis = "scalar"
    """What its entries stand for."""
    layers: bool = False
    """Whether every layer has it, or the classifier alone."""
    splits: tuple[str, ...] = SPLITS
    """Splits on which it is logged."""
    on_demand: str = ""
    """The argument of its callback that asks for it; empty where it is always there."""
    derived: bool = False
    """Whether another vector, which is kept, gives it."""
    over_epochs: str = ""
    """Title of a further panel that shows a vector over epochs."""
    error: str = ""
    """The metric that is its standard error: figures draw a band of 1.96 of it to both sides."""
    projected: bool = False
    """Whether it is right, within a stated error, at a layer whose features `max_features` has projected."""

    @property
    def heading(self) -> str:
        """Section and panel, as an overview calls them.

        Example:
            >>> METRICS["nc3"].heading
            'NC3: Weights and class means'
        """
        return f"{self.section}: {self.panel}"

    def value_at_collapse(self, num_classes: int, num_features: int) -> float | None:
        """The ideal value for k classes and p features, if there is one.

        Example:
            >>> METRICS["class_mean_cosines"].value_at_collapse(5, 64)
            -0.25
        """
        return self.ideal(num_classes, num_features) if callable(self.ideal) else self.ideal

    def is_logged(self, split: str, at_layer: bool) -> bool:
        """Whether a callback logs it on a split, at the classifier's input or at a further layer.

        Example:
            >>> METRICS["tpt"].is_logged("val", at_layer=False), METRICS["nc1"].is_logged("val", at_layer=True)
            (False, True)
        """
        return split in self.splits and (self.layers or not at_layer)


@dataclass(frozen=True)
class Panel:
    """Metrics that share a unit and are compared."""

    title: str
    metrics: tuple[Metric, ...]

    @property
    def unit(self) -> str:
        """The unit that its metrics share."""
        return self.metrics[0].unit

    @property
    def log(self) -> bool:
        """Whether a logarithmic axis suits its metrics."""
        return self.metrics[0].log


@dataclass(frozen=True)
class Section:
    """A chapter of the page and of the workspace."""

    title: str
    text: str
    """What it measures and what it shows at collapse, in a sentence."""
    panels: tuple[Panel, ...]

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Its metrics, in order."""
        return tuple(metric for panel in self.panels for metric in panel.metrics)


BAND = 1.96
"""Standard errors to both sides of a value, between which the population's lies in about 95 % of samples."""

METRICS: dict[str, Metric] = {}
"""Each metric by its name, in the order of the page and of the workspace."""

SECTION_TEXTS: dict[str, str] = {}
"""Title and text of each section, in order."""


def register(metric: Metric, section_text: str = "") -> None:
    """Add a metric: log, history, figures, page, workspace and tables follow from the row.

    Args:
        metric: The row.
        section_text: What its section measures, where the section is new.

    Raises:
        ValueError: Another metric has the name.

    Example:
        >>> register(METRICS["nc1"])  # the same again changes nothing
    """
    if METRICS.get(metric.name, metric) != metric:
        raise ValueError(
            f"A metric named {metric.name!r} is there already, of {METRICS[metric.name].callback}: choose another."
        )
    METRICS[metric.name] = metric
    SECTION_TEXTS.setdefault(metric.section, section_text)


def sections() -> tuple[Section, ...]:
    """The sections with the panels of their numbers, in order.

    Example:
        >>> sections()[0].title
        'NC1'
    """
    scalars = [metric for metric in METRICS.values() if metric.axis == "scalar"]
    found = (
        Section(title, text, _panels(m for m in scalars if m.section == title)) for title, text in SECTION_TEXTS.items()
    )
    return tuple(section for section in found if section.panels)


def vector_panels() -> tuple[Panel, ...]:
    """The panels of vectors and matrices, those of one axis and unit together.

    Example:
        >>> "class_mean_norms" in {metric.name for panel in vector_panels() for metric in panel.metrics}
        True
    """
    return _panels(metric for metric in METRICS.values() if metric.axis not in ("scalar", "sample"))


def metric_of(name: str) -> Metric:
    """The row of a name, or a bare one where there is none.

    Example:
        >>> metric_of("nc1").title, metric_of("mine").title
        ('NC1: tr(Σ_W Σ_B⁺) / k', 'mine')
    """
    return METRICS.get(name) or Metric(name, label=name, title=name)


def _panels(metrics: Iterable[Metric]) -> tuple[Panel, ...]:
    panels: dict[str, list[Metric]] = {}
    for metric in metrics:
        if metric.panel:
            panels.setdefault(metric.panel, []).append(metric)
    return tuple(Panel(title, tuple(found)) for title, found in panels.items())
