"""How far each condition of collapse holds at the end of a run, by the rules that docs/reading.md states."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nc_callbacks.metrics import LogKey, is_rounding, metric_of
from nc_callbacks.report.run import Run

FEW_SAMPLES = 20
"""Samples a class, below which class means carry so much noise that nc1 comes out too small."""


@dataclass(frozen=True)
class Rule:
    """A condition, the metric that decides on it, and the distance to the ideal value below which it holds."""

    condition: str
    metric: str
    ideal: float
    tolerance: float
    sentence: str


RULES = (
    Rule("NC1", "nc1", 0, 0.05, "Samples of a class gather at their class mean."),
    Rule("NC2", "nc2_etf", 0, 0.1, "Class means form a simplex: equal norms, equal and largest angles."),
    Rule("NC3", "nc3", 0, 0.1, "Weight rows are the centred class means, up to scale."),
    Rule("NC4", "nc4", 0, 0.01, "The classifier decides like the nearest class mean."),
    Rule("W–M̄", "wm_cosine", 1, 0.05, "Each weight row points along its centred class mean."),
    Rule("SQI", "sqi_epsilon_rel_std", 0, 0.1, "All samples have the same error at their label."),
)
"""In the order of the page."""


@dataclass(frozen=True)
class Verdict:
    """A condition at the end of a run."""

    rule: Rule
    start: float
    """At the first look that could be measured."""
    now: float
    outcome: str
    """``collapsed``, ``on the way`` or ``not``."""
    progress: float
    """From 0 at the first look to 1 where the condition holds."""


def verdicts(run: Run) -> list[Verdict]:
    """A verdict for each condition that was measured on the training split."""
    found = (_verdict(rule, run) for rule in RULES)
    return [verdict for verdict in found if verdict is not None]


def _verdict(rule: Rule, run: Run) -> Verdict | None:
    key = str(LogKey(rule.metric, "train"))
    now = run.final.get(key, math.nan)
    if not math.isfinite(now):
        return None
    _, values = run.curves.get(key, (np.array([]), np.array([])))
    finite = values[np.isfinite(values)]
    start = float(finite[0]) if len(finite) else now
    # A spread's mean may be negative, and its sign says nothing.
    now, start = (abs(now), abs(start)) if rule.metric.endswith("rel_std") else (now, start)
    left, at_first = abs(now - rule.ideal), abs(start - rule.ideal)
    if left <= rule.tolerance:
        return Verdict(rule, start, now, "collapsed", 1.0)
    outcome = "on the way" if left <= at_first / 2 else "not"
    # Distances fall by factors: half of the way is half of the factor.
    progress = math.log(at_first / left) / math.log(at_first / rule.tolerance) if at_first > rule.tolerance else 0.0
    return Verdict(rule, start, now, outcome, min(max(progress, 0.0), 1.0))


def num_classes(run: Run) -> int | None:
    """Classes with samples in the training split, where a look was kept of them."""
    for name in ("counts", "wm_cosine_per_class", "class_mean_norms", "mu1_per_class"):
        looks = run.looks.get(str(LogKey(name, "train")))
        if looks is not None and looks.step == 1 and len(looks.values):
            last = looks.values[-1]
            present = int((last > 0).sum() if name == "counts" else np.isfinite(last).sum())
            return present if present > 1 else None
    return None


def num_features(run: Run) -> int | None:
    """Features at the classifier's input, where a whole spectrum was kept."""
    looks = run.looks.get(str(LogKey("explained_variance", "train")))
    return looks.values.shape[1] if looks is not None and looks.values.shape[1] < 1000 else None


def without_error(run: Run) -> int | None:
    """The first epoch, counted from 1, after which the training error was 0."""
    for name in ("tpt", "accuracy"):
        epochs, values = run.curves.get(str(LogKey(name, "train")), (np.array([]), np.array([])))
        if (values == 1).any():
            return int(epochs[(values == 1).argmax()])
    return None


def notes(run: Run) -> dict[str, str]:
    """What a reader of a section has to know about this run, by section."""
    found: dict[str, str] = {}
    k, p = num_classes(run), num_features(run)
    if k is not None and p is not None and p < k - 1:
        found["NC2"] = f"No simplex ETF of {k} classes fits into {p} features (p < k − 1): the distances cannot be 0."
    for key, looks in run.looks.items():
        place = LogKey.parse(key)
        if place.name == "counts" and not place.layer and looks.step == 1:
            counts = looks.values[-1][looks.values[-1] > 0]
            if len(counts) and (median := int(np.median(counts))) < FEW_SAMPLES:
                text = f"{place.data} has {median} samples a class (median): its nc1 comes out too small."
                found["NC1"] = f"{found.get('NC1', '')} {text}".strip()
    for key, (_, values) in run.curves.items():
        place = LogKey.parse(key)
        if place.name == "sqi_gap" and is_rounding(values.tolist(), metric_of("sqi_gap")):
            found["SQI"] = "Softmax outputs add up to 1: ratio 1 and gap 0 hold by construction."
    return found
