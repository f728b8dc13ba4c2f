"""Findings of a run or a sweep, one line each, with its number."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nc_callbacks.metrics import METRICS, SHARE, LogKey, short
from nc_callbacks.report.run import Curve, Run, keys_of, varying

NAMES = {
    ("accuracy", "val"): "Validation accuracy",
    ("wm_cosine", "train"): "W–M̄ cosine",
    ("nc1", "train"): "Within-class variability (nc1)",
    ("nc4", "train"): "Disagreement with the nearest class mean (nc4)",
}
"""Metrics that the runs of a sweep are compared by, and their names."""


@dataclass(frozen=True)
class Finding:
    """One line: the number that carries it, and the sentence."""

    number: str
    text: str


def of_run(run: Run) -> list[Finding]:
    """Findings of the training split's last values, from accuracy to spectrum; none where its values are missing."""
    return [finding for part in (_accuracy, _collapse, _alignment, _interpolation, _spectrum) for finding in part(run)]


def of_sweep(runs: list[Run]) -> list[Finding]:
    """How many runs finished, and for the main metrics the extreme runs and the mean ± std of repeated seeds."""
    keys = [key for name, split in NAMES for key in keys_of(runs, name, split)]
    return [_outcomes(runs), *(finding for key in keys if (finding := _compared(key, runs)))]


def _outcomes(runs: list[Run]) -> Finding:
    finished = sum(run.status == "finished" for run in runs)
    text = f"of {len(runs)} runs finished"
    rest = len(runs) - finished
    for status, words in (("stopped", "stopped"), ("failed", "failed"), ("unreadable", "cannot be read")):
        if these := [label(run, runs) for run in runs if run.status == status]:
            text += f"; {len(these)} {words}: {', '.join(these)}"
            rest -= len(these)
    if unknown := sum(run.has_no_end for run in runs):
        text += f"; {unknown} left no summary"
        rest -= unknown
    return Finding(f"{finished}", text + (f"; {rest} did not end." if rest else "."))


def _compared(key: LogKey, runs: list[Run]) -> Finding | None:
    """The lowest and the highest value of a metric, and its mean ± std over seeds where there are several."""
    found = [(run.final[str(key)], run) for run in runs if math.isfinite(run.final.get(str(key), math.nan))]
    if not found:
        return None
    shown = _percent if METRICS[key.name].unit == SHARE else short
    low, high = min(found, key=lambda pair: pair[0]), max(found, key=lambda pair: pair[0])
    loader = "" if key.loader is None else f", loader {key.loader}"
    text = f"{NAMES[key.name, key.split]}{loader}: lowest in {label(low[1], runs)}, highest in {label(high[1], runs)}."
    groups = _without_seed([run for _, run in found])
    if any(len(group) > 1 for group in groups.values()):
        means = [_over_seeds(name, group, key) for name, group in groups.items()]
        text += f" Mean ± std over seeds: {'; '.join(means)}."
    number = shown(low[0]) if low[0] == high[0] else f"{shown(low[0])} to {shown(high[0])}"
    return Finding(number, text)


def label(run: Run, runs: list[Run]) -> str:
    """A run's name with the overrides that tell it from the others."""
    text = _setting(run, varying(runs))
    return f"{run.name} ({text})" if text else run.name


def _setting(run: Run, names: list[str]) -> str:
    pairs = zip(names, last_parts(names), strict=True)
    return ", ".join(f"{text}={run.overrides[name]}" for name, text in pairs if name in run.overrides)


def last_parts(names: list[str]) -> list[str]:
    """The last part of each dotted name, or the whole where another ends alike.

    Example:
        >>> last_parts(["model.activation", "data.name", "model.name"])
        ['activation', 'data.name', 'model.name']
    """
    last = [name.rsplit(".", 1)[-1] for name in names]
    return [end if last.count(end) == 1 else name for name, end in zip(names, last, strict=True)]


def _without_seed(runs: list[Run]) -> dict[str, list[Run]]:
    names = [name for name in varying(runs) if name != "seed"]
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_setting(run, names) or "all", []).append(run)
    return groups


def _over_seeds(name: str, runs: list[Run], key: LogKey) -> str:
    values = np.array([run.final[str(key)] for run in runs])
    share = METRICS[key.name].unit == SHARE
    if len(values) == 1:
        return f"{name} {_percent(values[0]) if share else short(values[0])} (one run)"
    spread = values.std(ddof=1)
    if share:
        return f"{name} {100 * values.mean():.1f} ± {100 * spread:.1f} %"
    return f"{name} {short(values.mean())} ± {short(spread, 2)}"


def _accuracy(run: Run) -> Iterator[Finding]:
    train = _last(run, "accuracy")
    if train is None:
        return
    text = "of the training set is classified rightly"
    if shares := [share for key in keys_of([run], "accuracy", "val") if (share := _share_of(run, key))]:
        text += f", and {', '.join(shares)}"
    epochs, tpt = _curve(run, "tpt")
    # NaN is no 1: after an epoch that could not be measured nothing is known.
    reached = tpt == 1
    if reached.any():
        text += f". The training error was first 0 after epoch {epochs[reached.argmax()]} (terminal phase of training)"
    elif np.isfinite(tpt).any():
        text += ". The terminal phase of training (no training error) was not reached"
    yield Finding(_percent(train), text + ".")


def _share_of(run: Run, key: LogKey) -> str:
    """The share of a validation set; empty where it is not finite."""
    value = run.final[str(key)]
    which = "" if key.loader is None else f" (loader {key.loader})"
    return f"{_percent(value)} of the validation set{which}" if math.isfinite(value) else ""


def _collapse(run: Run) -> Iterator[Finding]:
    if (nc1 := _last(run, "nc1")) is not None:
        text = "is the variability within classes (NC1; 0 at collapse)"
        _, values = _curve(run, "nc1")
        if len(values) > 1 and nc1 > 0 and np.isfinite(values[0]):
            text += f"; it was {short(values[0])} at the first look, {_times(values[0] / nc1)}"
        yield Finding(short(nc1), text + ".")
    if (etf := _last(run, "nc2_etf")) is not None:
        text = "is the distance of the class means to a simplex ETF (NC2; 0 at collapse)"
        norms, weights = _last(run, "nc2_equinorm"), _last(run, "nc2_etf_weights")
        if norms is not None:
            text += f"; their norms vary by {_percent(norms)}"
        if weights is not None:
            text += f"; the weights are at {short(weights)}"
        yield Finding(short(etf), text + ".")
    if (nc3 := _last(run, "nc3")) is not None:
        yield Finding(short(nc3), "is the squared distance of weights and class means, both scaled to norm 1 (NC3).")
    if (nc4 := _last(run, "nc4")) is not None:
        ncc = _last(run, "ncc_accuracy")
        text = "of the training set is where classifier and nearest class mean disagree (NC4)"
        if ncc is not None:
            text += f"; the nearest class mean classifies {_percent(ncc)} rightly"
        yield Finding(_percent(nc4), text + ".")


def _alignment(run: Run) -> Iterator[Finding]:
    if (cosine := _last(run, "wm_cosine")) is not None:
        text = "is the W–M̄ cosine, the mean over classes"
        if (least := _last(run, "wm_cosine_min")) is not None:
            text += f" (least {short(least)})"
        if (accuracy := _last(run, "accuracy_centred_means")) is not None:
            text += f"; centred means classify {_percent(accuracy)} of the training set"
        yield Finding(short(cosine), text + ".")
    mu, sigma = _last(run, "mu_ratio"), _last(run, "sigma_ratio")
    if mu is not None and sigma is not None:
        yield Finding(
            short(mu),
            f"is μ₂/μ₁ and {short(sigma)} is σ²₂/σ²₁: near-optimal representations have 0 for both.",
        )


def _interpolation(run: Run) -> Iterator[Finding]:
    ratio, epsilon = _last(run, "sqi_ratio"), _last(run, "sqi_epsilon")
    if ratio is None or epsilon is None:
        return
    _, gap = _curve(run, "sqi_gap")
    gap = gap[np.isfinite(gap)]
    if len(gap) and np.abs(gap).max() < 1e-6:
        text = "is SQI's ratio ε / ((k−1) ε̃): by construction, for softmax outputs add up to 1"
    else:
        text = f"is SQI's ratio ε / ((k−1) ε̃) (1 where the condition holds on average), with ε = {short(epsilon)}"
    spread, off = _last(run, "sqi_epsilon_rel_std"), _last(run, "sqi_epsilon_off_rel_std")
    if spread is not None and off is not None:
        text += f"; the spreads are {short(abs(spread))} and {short(abs(off))} times the means (0 in the strict form)"
    yield Finding(short(ratio), text + ".")


def _spectrum(run: Run) -> Iterator[Finding]:
    if (rank := _last(run, "spectrum_effective_rank")) is not None:
        text = "directions is the features' effective rank"
        looks = run.looks.get(str(LogKey("explained_variance", "train")))
        if looks is not None and looks.values.shape[1] < 1000:
            text += f", of {looks.values.shape[1]}"
        if (share := _last(run, "spectrum_share")) is not None:
            text += f"; the first k−1 explain {_percent(share)} of the variance"
        yield Finding(short(rank), text + ".")


def _curve(run: Run, name: str) -> Curve:
    """Of the training split; empty where there is none."""
    return run.curves.get(str(LogKey(name, "train")), (np.array([], np.int32), np.array([], np.float32)))


def _last(run: Run, name: str) -> float | None:
    value = run.final.get(str(LogKey(name, "train")))
    return value if value is not None and math.isfinite(value) else None


def _percent(value: float) -> str:
    """Three digits, and 100 % only where it is all.

    Example:
        >>> _percent(0.99996), _percent(1.0), _percent(0.0214)
        ('>99.9 %', '100 %', '2.1 %')
    """
    if 0.9995 <= value < 1:
        return ">99.9 %"
    if 0 < value < 0.0005:
        return "<0.1 %"
    return f"{100 * value:.1f} %" if value not in (0, 1) else f"{100 * value:.0f} %"


def _times(ratio: float) -> str:
    return f"{short(ratio)} times as much" if ratio >= 1 else f"{short(1 / ratio)} times less"
