"""The papers' figures of several runs: drawn when a sweep ends, with a CSV of what they show."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nc_callbacks.metrics import LogKey, metric_of
from nc_callbacks.report.run import Run
from nc_callbacks.runs.folder import read
from nc_callbacks.runs.tables import write_table

LOWER = "network.backbone.fc"
"""The layer before the classifier of `conv_2fc`."""


@dataclass(frozen=True)
class PaperFigure:
    """A figure of several runs."""

    draw: str
    """Name of a function in `nc_callbacks.figures.papers` or `nc_callbacks.figures.over_runs`."""
    vectors: tuple[str, ...] = ()
    """Log keys of the vectors that it shows (and of the table of samples)."""
    metrics: tuple[str, ...] = ()
    """Log keys that it shows."""
    tables: tuple[str, ...] = ()
    """Files of each run that it shows instead."""


def _train(*names: str, layer: str = "") -> tuple[str, ...]:
    return tuple(str(LogKey(name, "train", layer)) for name in names)


_LAYER = ("nc1", "nc2_equiangularity_signed", "nc2_equinorm", "ncc_accuracy")
_SPREADS = ("sqi_epsilon_rel_std", "sqi_epsilon_off_rel_std")
_NC2 = ("nc2_equinorm", "nc2_equinorm_weights", "nc2_equiangularity", "nc2_equiangularity_weights")
_ACCURACIES = tuple(
    str(LogKey(name, split)) for split in ("train", "val") for name in ("accuracy", "accuracy_centred_means")
)

FIGURES = {
    "seddik_fig1": PaperFigure(
        "near_optimality_grid", _train("mu1_per_class", "mu2_per_class", "sigma1_per_class", "sigma2_per_class")
    ),
    "seddik_fig2": PaperFigure(
        "cosine_and_accuracy_grid",
        _train("wm_cosine_per_class"),
        _ACCURACIES,
    ),
    "alignment": PaperFigure("alignment_scatter", (), _train("mu_ratio", "wm_cosine")),
    "seeds": PaperFigure("means_over_seeds", (), (*_train("wm_cosine"), *_ACCURACIES)),
    "seddik_fig3": PaperFigure("transfer_grid", tables=("accuracy.csv", "curves.csv")),
    "lindegaard_fig1": PaperFigure(
        "interpolation_grid",
        (),
        _train("sqi_epsilon", "sqi_epsilon_off", "sqi_ratio", "sqi_gap", *_SPREADS, "accuracy"),
    ),
    "lindegaard_fig2": PaperFigure("layers_grid", (), (*_train(*_LAYER), *_train(*_LAYER, layer=LOWER), "train/loss")),
    "lindegaard_fig3": PaperFigure(
        "spectrum_grid", (*_train("explained_variance"), *_train("explained_variance", layer=LOWER))
    ),
    "lindegaard_table1": PaperFigure("samples_table", _train("sqi_samples")),
    "papyan_resnet18": PaperFigure("collapse_grid", (), _train("nc1", *_NC2, "nc3", "nc4", "accuracy")),
}


def draw_paper_figure(folder: Path, figure: str) -> list[Path]:
    """Draw a paper's figure from the finished runs of a sweep's folder, and write what it shows as CSV.

    ``FIGURE.csv`` has a row a value: run (its subfolder), data, model, activation, seed, epoch, index, metric, value.
    The index is the class, or the direction of a spectrum; in the table of samples it is the class of the output. Of
    Fig. 3 of Seddik & Tamaazousti it has the runs' own ``accuracy.csv`` and ``curves.csv`` instead, below each other,
    with their column ``seed``, of the target's samples and noise, as ``draw``.

    Args:
        folder: The sweep's folder.
        figure: A key of `FIGURES`.

    Returns:
        ``FIGURE.png`` and ``FIGURE.csv``; none where no run has finished.

    Raises:
        ValueError: There is no such figure.
    """
    if figure not in FIGURES:
        raise ValueError(f"figure must be one of {', '.join(FIGURES)}, got {figure!r}.")
    from nc_callbacks.figures import over_runs, papers

    what = FIGURES[figure]
    runs = [run for run in read(folder)[1] if run.status == "finished" and (run.looks or what.tables)]
    if not runs:
        return []
    table, picture = folder / f"{figure}.csv", folder / f"{figure}.png"
    rows = [row for run in runs for row in (_copied(run, what.tables) if what.tables else _rows(run, what))]
    write_table(table, dict.fromkeys(key for row in rows for key in row), rows)
    room = over_runs if hasattr(over_runs, what.draw) else papers
    draw: Callable[[Sequence[Run]], Any] = getattr(room, what.draw)
    draw(runs).savefig(picture, dpi=110)
    return [picture, table]


def _rows(run: Run, what: PaperFigure) -> Iterator[dict[str, Any]]:
    start = _which(run)
    for text in what.metrics:
        for epoch, value in zip(*run.curves[text], strict=True):
            yield start | {"epoch": int(epoch), "index": "", "metric": text, "value": float(value)}
    for text in what.vectors:
        looks, key = run.looks[text], LogKey.parse(text)
        name = str(replace(key, split="", prefix=""))
        is_table = metric_of(key.name).axis == "sample"
        for epoch, values in zip(looks.epochs, looks.values, strict=True):
            for index, metric, value in _samples(values) if is_table else _entries(values, name):
                yield start | {"epoch": int(epoch), "index": index, "metric": metric, "value": float(value)}


def _entries(values: np.ndarray, name: str) -> Iterator[tuple[int, str, float]]:
    yield from ((index, name, value) for index, value in enumerate(values))


def _samples(table: np.ndarray) -> Iterator[tuple[int, str, float]]:
    """ε at the label and ε̃ at the other classes of each sample."""
    for sample, label, epsilon, *others in table:
        for c, other in enumerate(others):
            kind, value = ("epsilon", epsilon) if c == label else ("epsilon_off", other)
            yield c, f"{kind} of sample {int(sample)}", value


def _copied(run: Run, tables: Sequence[str]) -> Iterator[dict[str, Any]]:
    for name in tables:
        with open(run.folder / name, newline="") as file:
            for row in csv.DictReader(file):
                own = {"draw" if column == "seed" else column: text for column, text in row.items()}
                yield _which(run) | {"table": name.removesuffix(".csv")} | own


def _which(run: Run) -> dict[str, Any]:
    config, model = run.config, run.config["model"]
    return {
        "run": run.name,
        "data": config["data"]["name"],
        "model": model["_target_"].rsplit(".", 1)[1],
        "activation": model["activation"],
        "seed": config["seed"],
    }
