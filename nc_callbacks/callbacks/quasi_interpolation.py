"""The callback that measures how far the outputs quasi-interpolate the labels."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from nc_callbacks.callbacks.base import CollapseCallback
from nc_callbacks.engine.measurement import Measurement
from nc_callbacks.engine.request import ClassifierObservation, Needs, Observation
from nc_callbacks.engine.session import shared
from nc_callbacks.engine.trainer import is_a
from nc_callbacks.functional import quasi_interpolation_errors
from nc_callbacks.statistics import Outputs

SAMPLES_FILE = "quasi_interpolation_samples.csv"
"""Written to the trainer's `default_root_dir`."""


class QuasiInterpolation(CollapseCallback):
    """Measure symmetric quasi-interpolation (SQI) of the labels by the outputs (Lindegaard 2021).

    Numbers, logged as ``nc/{split}/{name}``, in units of the outputs (a one-hot label is 1) or dimensionless:
    ``sqi_epsilon``, ``sqi_epsilon_off``, ``sqi_ratio``, ``sqi_gap``, ``sqi_epsilon_rel_std``,
    ``sqi_epsilon_off_rel_std``, ``sqi_epsilon_std``, ``sqi_epsilon_off_std``, ``sqi_epsilon_off_sample_rel_std`` (see
    `nc_callbacks.OutputErrors`). SQI is a property of the outputs, of all k of them: `layers` adds nothing to it, and a
    class without samples still has its output.

    With squared error the outputs are measured raw. With cross-entropy they are measured after the softmax, and then
    the average condition (Assumption 2 of the paper) says nothing: softmax outputs add up to 1, so that ε_i =
    Σ_c ε̃_{i,c} for every sample, ``sqi_ratio`` is 1 and ``sqi_gap`` 0 by construction. What can be read there is the
    spread (Assumption 1).

    Args:
        outputs: ``"raw"`` or ``"softmax"``; by default softmax where the module holds a cross-entropy loss
            (`torch.nn.CrossEntropyLoss`, `torch.nn.NLLLoss` or a module named like them), else raw.
        samples: Indices into the training set of samples whose errors are tabled (the paper's Table 1): in `latest` as
            the matrix ``sqi_samples`` (a row a sample: index, label, ε, and ε̃ by class with NaN at the label), after
            each look in ``quasi_interpolation_samples.csv`` under the trainer's `default_root_dir`, times 10³, and
            when fit ends as a table in W&B and TensorBoard. A sample that `limit_train_batches` leaves out of the look
            is not in it.
        kwargs: The arguments of `nc_callbacks.callbacks.base.CollapseCallback`.

    Raises:
        ValueError: An argument is out of its range; in `setup` and before the first epoch, what is wrong with the
            model or the data.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(max_epochs=3, callbacks=[QuasiInterpolation(outputs="raw", samples=[0, 1])], logger=False)
    """

    def __init__(self, *, outputs: Outputs | None = None, samples: Sequence[int] = (), **kwargs: Any) -> None:
        if outputs not in (None, "raw", "softmax"):
            raise ValueError(f'outputs must be None, "raw" or "softmax", got {outputs!r}.')
        super().__init__(**kwargs)
        if samples and self.mode == "online":
            raise ValueError('samples need mode="epoch_end": training does not say which of its samples are which.')
        self.outputs = outputs
        self.kind: Outputs = outputs or "raw"
        self.samples = tuple(samples)

    @property
    def needs(self) -> Needs:
        return Needs(errors=frozenset({self.kind}), samples=self.samples)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._choose_kind(pl_module)

    def _choose_kind(self, model: LightningModule) -> None:
        self.kind = self.outputs or ("softmax" if _has_cross_entropy(model) else "raw")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        # A loss that configure_model makes was not there in setup.
        self._choose_kind(pl_module)
        if self.kind == "raw" and self.outputs is None:
            rank_zero_info(
                "QuasiInterpolation measures raw outputs, for the module holds no cross-entropy loss. If it trains "
                'with cross-entropy all the same, pass outputs="softmax".'
            )
        if self.kind == "softmax":
            rank_zero_info(
                "QuasiInterpolation measures softmax outputs: they add up to 1, so the average condition holds by "
                "construction (sqi_ratio 1, sqi_gap 0) and only the spread can be read."
            )

    def measure(self, observation: Observation) -> Measurement:
        if (classifier := observation.classifier) is None:
            return Measurement({}, {}, {})
        numbers = {name: float(value) for name, value in classifier.errors[self.kind].items()}
        table = self._table(classifier) if self.samples and observation.split == "train" else None
        return Measurement(numbers, {}, {} if table is None else {"sqi_samples": table})

    def _table(self, classifier: ClassifierObservation) -> Tensor | None:
        if (rows := classifier.samples) is None:
            return None
        row_of = {index: row for row, index in enumerate(rows[:, 0].long().tolist())}
        rows = rows[[row_of[index] for index in self.samples if index in row_of]]
        labels, outputs = rows[:, 1:2], rows[:, 2:]
        label, softmax = labels.long(), self.kind == "softmax"
        epsilon, _ = quasi_interpolation_errors(outputs, label.squeeze(1), softmax)
        outputs = outputs.softmax(1) if softmax else outputs
        return torch.cat([rows[:, :2], epsilon[:, None], outputs.scatter(1, label, torch.nan)], 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        key = f"{self.prefix}/train/sqi_samples"
        if key in self.latest and self.latest["epoch"] == trainer.current_epoch and trainer.is_global_zero:
            columns, rows = self._printed(self.latest[key])
            name = SAMPLES_FILE if self.prefix == "nc" else f"{self.prefix}_{SAMPLES_FILE}"
            try:
                Path(trainer.default_root_dir).mkdir(parents=True, exist_ok=True)
                with open(Path(trainer.default_root_dir, name), "w", newline="") as file:
                    csv.writer(file).writerows([columns, *rows])
            except OSError as error:
                message = f"The table of samples could not be written to {trainer.default_root_dir}: {error!r}."
                shared(trainer).warn_once("samples file", message)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_end(trainer, pl_module)
        key = f"{self.prefix}/train/sqi_samples"
        if key not in self.latest or not trainer.is_global_zero:
            return
        columns, rows = self._printed(self.latest[key])
        logger: Any
        for logger in trainer.loggers:
            try:
                if is_a(logger, "TensorBoardLogger"):
                    lines = [columns, ["---"] * len(columns), *rows]
                    text = "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
                    logger.experiment.add_text(key, text, self.latest["step"])
                elif hasattr(logger, "log_table"):
                    logger.log_table(key, columns, rows)
            except Exception as error:
                rank_zero_warn(f"The table of samples could not be logged by {type(logger).__name__}: {error!r}.")

    def _printed(self, table: Tensor) -> tuple[list[str], list[list[Any]]]:
        """Header and rows of the table, errors times 10³; empty at the label."""
        classes = table.shape[1] - 3
        columns = ["epoch", "sample", "label", "epsilon_e3", *(f"epsilon_off_e3_class_{c}" for c in range(classes))]
        rows: list[list[Any]] = []
        for index, label, *errors in table.tolist():
            printed = ["" if error != error else f"{1000 * error:.4g}" for error in errors]
            rows.append([self.latest["epoch"], int(index), int(label), *printed])
        return columns, rows

    def draw(self, folder: Path) -> None:
        from nc_callbacks.figures import save_interpolation_figures

        save_interpolation_figures(self.history, folder, self.prefix)


def _has_cross_entropy(model: nn.Module) -> bool:
    def is_cross_entropy(module: nn.Module) -> bool:
        return isinstance(module, nn.NLLLoss) or "CrossEntropy" in type(module).__name__

    return any(map(is_cross_entropy, model.modules()))
