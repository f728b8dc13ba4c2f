"""The table of a few chosen samples' errors (Lindegaard 2021, Table 1)."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from nc_callbacks.engine.trainer import is_a
from nc_callbacks.functional import quasi_interpolation_errors
from nc_callbacks.statistics import Outputs

SAMPLES_FILE = "quasi_interpolation_samples.csv"
"""Written to the trainer's `default_root_dir`."""

Table = Float[Tensor, "samples columns"]


def sample_errors(rows: Float[Tensor, "samples 2+k"], chosen: Sequence[int], kind: Outputs) -> Table:
    """Index, label, ε, and ε̃ by class with NaN at the label, one row per sample in the order asked for.

    Args:
        rows: Index, label and outputs of the samples that were met.
        chosen: Indices asked for.
        kind: What is measured of the outputs.
    """
    row_of = {index: row for row, index in enumerate(rows[:, 0].long().tolist())}
    rows = rows[[row_of[index] for index in chosen if index in row_of]]
    label, outputs, softmax = rows[:, 1:2].long(), rows[:, 2:], kind == "softmax"
    epsilon, _ = quasi_interpolation_errors(outputs, label.squeeze(1), softmax)
    outputs = outputs.softmax(1) if softmax else outputs
    return torch.cat([rows[:, :2], epsilon[:, None], outputs.scatter(1, label, torch.nan)], 1)


def write_samples(path: Path, table: Table, epoch: int) -> None:
    """Write the table as CSV, errors times 10³."""
    columns, rows = _printed(table, epoch)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([columns, *([_text(value) for value in row] for row in rows)])


def log_samples(trainer: Trainer, key: str, table: Table, epoch: int, step: int) -> None:
    """Give the table to the trainer's W&B and TensorBoard loggers."""
    columns, rows = _printed(table, epoch)
    logger: Any
    for logger in trainer.loggers:
        try:
            if is_a(logger, "TensorBoardLogger"):
                lines = [columns, ["---"] * len(columns), *([_text(value) for value in row] for row in rows)]
                logger.experiment.add_text(key, "\n".join("| " + " | ".join(line) + " |" for line in lines), step)
            elif hasattr(logger, "log_table"):
                logger.log_table(key, columns, rows)
        except Exception as error:
            rank_zero_warn(f"The table of samples could not be logged by {type(logger).__name__}: {error!r}.")


def _printed(table: Table, epoch: int) -> tuple[list[str], list[list[float | None]]]:
    """Header and rows, errors times 10³; None at the label."""
    classes = table.shape[1] - 3
    columns = ["epoch", "sample", "label", "epsilon_e3", *(f"epsilon_off_e3_class_{c}" for c in range(classes))]
    rows: list[list[float | None]] = []
    for index, label, *errors in table.tolist():
        rows.append([epoch, int(index), int(label), *(None if error != error else 1000 * error for error in errors)])
    return columns, rows


def _text(value: float | str | None) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
