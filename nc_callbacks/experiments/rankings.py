"""Agreement of scores of sources with what trained heads and fine-tuned networks reach."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from nc_callbacks.experiments.transfer import Row, print_rows, write_rows

RANKINGS = (
    "lda_accuracy",
    "logme",
    "h_score_regularised",
    "h_score",
    "cm_accuracy",
    "ncm_accuracy",
    "minus_nc1",
    "knn_accuracy",
    "leep",
    "nce",
    "logistic_1_percent",
)
"""Scores by which sources are ranked, the larger the better."""

COSTS = {
    "knn_accuracy": "seconds_knn",
    "leep": "seconds_leep",
    "nce": "seconds_leep",
    "logistic_1_percent": "seconds_1_percent",
}
"""Column of the seconds of each score; those of `rank_sources` come together, in ``seconds``."""


def rank_correlations(rows: Sequence[Row], truth: str = "trained_head") -> list[Row]:
    """Agreement of each score with the truth, a row per score.

    Kendall's τ-b (mean over seeds, by target), their mean with its standard error over seeds, the mean of the weighted
    τ, the regret (by how many points the source ranked first is worse than the best) with its standard error, and the
    mean seconds of the score for a source and target, from its features on.

    Args:
        rows: One per seed, source and target, with the scores and the truth; where the truth is missing or nan, the
            source is left out.
        truth: Key of the accuracies that are to be foretold.
    """
    from scipy.stats import kendalltau, weightedtau

    groups: dict[tuple[int, str], list[Row]] = {}
    for row in rows:
        if not math.isnan(row.get(truth, math.nan)):
            groups.setdefault((row.get("seed", 0), row["target"]), []).append(row)
    targets = list(dict.fromkeys(target for _, target in groups))
    found: list[Row] = []
    for ranking in RANKINGS:
        tau, weighted, regret = {}, {}, {}
        for group, of in groups.items():
            values, reached = [row[ranking] for row in of], [row[truth] for row in of]
            tau[group] = float(kendalltau(values, reached).statistic)
            weighted[group] = float(weightedtau(values, reached).statistic)
            regret[group] = 100 * (max(reached) - reached[values.index(max(values))])
        by_target = {target: fmean(v for (_, t), v in tau.items() if t == target) for target in targets}
        seconds = [row[key] for row in rows if (key := COSTS.get(ranking, "seconds")) in row]
        means = {
            "mean": fmean(tau.values()),
            "error": _error_over_seeds(tau),
            "weighted": fmean(weighted.values()),
            "regret": fmean(regret.values()),
            "regret_error": _error_over_seeds(regret),
            "seconds": fmean(seconds) if seconds else math.nan,
        }
        found.append({"ranking": ranking, **by_target, **means})
    return found


def _error_over_seeds(values: Mapping[tuple[int, str], float]) -> float:
    seeds = dict.fromkeys(seed for seed, _ in values)
    by_seed = [fmean(v for (s, _), v in values.items() if s == seed) for seed in seeds]
    return stdev(by_seed) / len(by_seed) ** 0.5 if len(by_seed) > 1 else math.nan


def write_tables(rows: Sequence[Row], folder: Path) -> None:
    """``scores.csv``, ``kendall.csv``, where networks were fine-tuned ``kendall_fine_tuned.csv``, and the figure."""
    from nc_callbacks.figures.transfer import ranking_figure

    write_rows(folder / "scores.csv", rows)
    taus = rank_correlations(rows)
    write_rows(folder / "kendall.csv", taus)
    print_rows("Kendall's τ with the accuracy of the trained head", taus)
    if any(not math.isnan(row.get("fine_tuned", math.nan)) for row in rows):
        taus = rank_correlations(rows, "fine_tuned")
        write_rows(folder / "kendall_fine_tuned.csv", taus)
        print_rows("Kendall's τ with the accuracy of the fine-tuned network", taus)
    last = [row for row in rows if row["seed"] == rows[-1]["seed"]]
    figure = ranking_figure(last, "lda_accuracy", "trained_head", "accuracy of whitened means (no training)")
    figure.savefig(folder / "source_selection.png", dpi=130)


def read_scores(folder: Path) -> list[dict[str, Any]]:
    """The rows of all ``scores.csv`` below a folder, sorted by seed, then as they lie there.

    Raises:
        FileNotFoundError: There is none.
    """
    rows: list[dict[str, Any]] = []
    for path in sorted(path for path in folder.rglob("scores.csv") if path.parent != folder):
        with open(path, newline="") as file:
            rows += [{key: _value(key, cell) for key, cell in row.items()} for row in csv.DictReader(file)]
    if not rows:
        raise FileNotFoundError(f"Expected folders with scores.csv of experiment=source_selection in {folder}.")
    return sorted(rows, key=lambda row: row["seed"])


def _value(key: str, cell: str) -> Any:
    return cell if key in ("target", "source") else int(cell) if key == "seed" else float(cell)


if __name__ == "__main__":
    # Runs of several seeds, or of some sources each: `python -m nc_callbacks.experiments.rankings FOLDER`.
    write_tables(read_scores(Path(sys.argv[1])), Path(sys.argv[1]))
