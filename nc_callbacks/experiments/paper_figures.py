"""The papers' figures of several runs: drawn when a sweep ends, with a CSV of what they show."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nc_callbacks.report.read import Run, read


@dataclass(frozen=True)
class PaperFigure:
    """A figure of several runs."""

    draw: str
    """Name of a function in `nc_callbacks.figures.papers`."""
    vectors: tuple[str, ...]
    """Per-class vectors that it shows, of the training split."""
    metrics: tuple[str, ...]
    """Log keys that it shows."""


FIGURES = {
    "seddik_fig1": PaperFigure(
        "near_optimality_grid", ("mu1_per_class", "mu2_per_class", "sigma1_per_class", "sigma2_per_class"), ()
    ),
    "seddik_fig2": PaperFigure(
        "cosine_and_accuracy_grid",
        ("wm_cosine_per_class",),
        tuple(f"nc/{split}/{name}" for split in ("train", "val") for name in ("accuracy", "accuracy_centred_means")),
    ),
    "lindegaard_fig1": PaperFigure(
        "interpolation_grid",
        (),
        tuple(
            f"nc/train/{name}"
            for name in (
                "sqi_epsilon",
                "sqi_epsilon_off",
                "sqi_ratio",
                "sqi_gap",
                "sqi_epsilon_rel_std",
                "sqi_epsilon_off_rel_std",
                "accuracy",
            )
        ),
    ),
}


def draw_paper_figure(folder: Path, figure: str) -> list[Path]:
    """Draw a paper's figure from the finished runs of a sweep's folder, and write what it shows as CSV.

    ``FIGURE.csv`` has a row a value: data, model, activation, epoch, class, metric, value.

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
    import nc_callbacks.figures.papers as papers

    what = FIGURES[figure]
    runs = [run for run in read(folder)[1] if run.status == "finished" and run.looks]
    if not runs:
        return []
    table, picture = folder / f"{figure}.csv", folder / f"{figure}.png"
    with open(table, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["data", "model", "activation", "epoch", "class", "metric", "value"])
        for run in runs:
            writer.writerows(_rows(run, what))
    draw: Callable[[Sequence[Run]], Any] = getattr(papers, what.draw)
    draw(runs).savefig(picture, dpi=110)
    return [picture, table]


def _rows(run: Run, what: PaperFigure) -> list[list[Any]]:
    model = run.config["model"]
    start = [run.config["data"]["name"], model["_target_"].rsplit(".", 1)[1], model["activation"]]
    rows: list[list[Any]] = []
    for key in what.metrics:
        rows += [[*start, int(epoch), "", key, float(value)] for epoch, value in zip(*run.curves[key], strict=True)]
    for name in what.vectors:
        looks = run.looks[f"nc/train/{name}"]
        for epoch, values in zip(looks.epochs, looks.values, strict=True):
            rows += [[*start, int(epoch), c, name, float(value)] for c, value in enumerate(values)]
    return rows
