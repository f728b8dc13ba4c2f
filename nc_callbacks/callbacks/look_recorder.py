"""The callback that keeps, look by look, the vectors and matrices that a run's page shows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from nc_callbacks.callbacks.base import CollapseCallback
from nc_callbacks.callbacks.history import MAX_ENTRIES, MAX_LOOKS, least_missed
from nc_callbacks.files import replacing
from nc_callbacks.metrics import LogKey, metric_of

LOOKS_FILE = "looks.npz"
"""Written to the recorder's folder; `numpy.load` reads it without pickle."""

MAX_ROWS = 100
"""Rows and columns kept of a matrix of classes."""


class LookRecorder(Callback):
    """Keep the vectors and matrices of the callbacks' looks in ``looks.npz``, bounded in size, for the run's page.

    The file has for each log key ``KEY`` (looks, …) in float32, ``KEY@epochs`` (looks,), counted from 1, and
    ``KEY@step``, how many classes an entry stands for; ``@ended`` says whether fit has ended. It is written anew after
    each look, so that a run that is cut off leaves what it has seen.

    - At most 40 looks per key: the first ones, then ever fewer, evenly spaced in the logarithm of the epoch; the last
      look is always among them.
    - Per-class vectors of more than 1,000 classes keep one class in so many, evenly spaced; spectra keep their first
      1,000 directions.
    - Matrices of more than 100 classes are averaged over blocks of neighbouring classes; tables of samples keep their
      first 100 samples and classes.

    Args:
        folder: Where the file goes.

    Raises:
        ValueError: In `setup`: a callback whose looks are to be kept comes after this one.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from nc_callbacks import NeuralCollapse
        >>> trainer = Trainer(callbacks=[NeuralCollapse(), LookRecorder("runs/a")], logger=False)
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.epochs: dict[str, list[int]] = {}
        self.values: dict[str, list[Tensor]] = {}
        self.steps: dict[str, int] = {}
        self._of_histories: set[str] = set()
        self._warned: set[str] = set()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the callbacks that it records come before it."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        late = [c for c in callbacks[callbacks.index(self) :] if isinstance(c, CollapseCallback)]
        if late:
            raise ValueError(
                f"{type(late[0]).__name__} comes after LookRecorder in the trainer's callbacks, so its looks would be "
                "missed: put LookRecorder after it."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget looks that a resumed fit makes again."""
        # Of a fit that was cut off and is repeated, or of an earlier one.
        for key, epochs in list(self.epochs.items()):
            seen = sum(epoch <= trainer.current_epoch for epoch in epochs)
            del epochs[seen:], self.values[key][seen:]
            if not epochs:
                self._forget(key)
        self._take_over(trainer)

    def _take_over(self, trainer: Trainer) -> None:
        """The vectors of earlier looks, which a checkpoint holds in the callbacks' histories."""
        for callback in _callbacks(trainer):
            held = {key for record in callback.history for key in _kept_of(record)}
            for key in held:
                self._forget(key)
            for record in callback.history:
                for key, value in _kept_of(record).items():
                    self._keep(key, record["epoch"] + 1, value)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the look of this epoch."""
        if not trainer.is_global_zero:
            return
        try:
            self._record(trainer)
        except Exception as error:
            self._warn_once("record", f"The looks could not be written to {self.folder}: {error!r}.")

    def _record(self, trainer: Trainer) -> None:
        looked = [c for c in _callbacks(trainer) if c.latest.get("epoch") == trainer.current_epoch]
        for callback in looked:
            for key, value in _kept_of(callback.latest).items():
                self._keep(key, trainer.current_epoch + 1, value)
                if callback.history and key in callback.history[-1] and value.numel() <= MAX_ENTRIES:
                    self._of_histories.add(key)
        if looked:
            self._write()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file."""
        if trainer.is_global_zero and self.values:
            try:
                self._write(ended=True)
            except Exception as error:
                self._warn_once("record", f"The looks could not be written to {self.folder}: {error!r}.")

    def state_dict(self) -> dict[str, Any]:
        """Matrices and long vectors; the others are in the callbacks' histories."""
        own = {key: torch.stack(values) for key, values in self.values.items() if key not in self._of_histories}
        return {
            "epochs": {key: list(self.epochs[key]) for key in own},
            "values": {key: _folded(values) for key, values in own.items()},
            "steps": {key: self.steps[key] for key in own},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what a checkpoint holds."""
        self.epochs = {key: list(epochs) for key, epochs in state_dict["epochs"].items()}
        self.values = {key: list(_unfolded(values)) for key, values in state_dict["values"].items()}
        self.steps = dict(state_dict["steps"])

    def _keep(self, key: str, epoch: int, value: Tensor) -> None:
        kept, step = shrunk(key, value)
        if key in self.values and self.values[key][0].shape != kept.shape:
            self._forget(key)
            message = f"{key} has another size from epoch {epoch} on (other classes or features): its looks start anew."
            self._warn_once("size", message)
        epochs, values = self.epochs.setdefault(key, []), self.values.setdefault(key, [])
        self.steps[key] = step
        epochs.append(epoch)
        values.append(kept)
        if len(epochs) > MAX_LOOKS:
            surplus = least_missed(epochs)
            del epochs[surplus], values[surplus]

    def _forget(self, key: str) -> None:
        for held in (self.epochs, self.values, self.steps):
            held.pop(key, None)

    def _warn_once(self, what: str, message: str) -> None:
        if what not in self._warned:
            rank_zero_warn(message)
        self._warned.add(what)

    def _write(self, ended: bool = False) -> None:
        arrays: dict[str, Any] = {"@ended": np.array(ended)}
        for key, values in self.values.items():
            arrays[key] = torch.stack(values).numpy()
            arrays[f"{key}@epochs"] = np.array(self.epochs[key])
            arrays[f"{key}@step"] = np.array(self.steps[key])
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.folder / LOOKS_FILE, "wb") as file:
            np.savez(file, **arrays)


def _callbacks(trainer: Trainer) -> list[CollapseCallback]:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, CollapseCallback)]


def _kept_of(record: Mapping[str, Any]) -> dict[str, Tensor]:
    """The vectors and matrices of a look that are kept: all but those that others give."""
    return {
        key: value
        for key, value in record.items()
        if isinstance(value, Tensor) and value.ndim in (1, 2) and not metric_of(LogKey.parse(key).name).derived
    }


def _folded(values: Tensor) -> Tensor:
    """Of matrices that are all symmetric the entries on and above the diagonal, in four dimensions as a mark of it."""
    mirrored = values.transpose(1, -1)
    if values.ndim != 3 or values.shape != mirrored.shape:
        return values
    if not torch.allclose(values, mirrored, rtol=0, atol=0, equal_nan=True):
        return values
    rows, columns = torch.triu_indices(*values.shape[1:])
    return values[:, rows, columns][:, None, None]


def _unfolded(values: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    """What `_folded` was given."""
    if isinstance(values, list) or values.ndim != 4:
        return values
    size = math.isqrt(2 * values.shape[-1])
    rows, columns = torch.triu_indices(size, size)
    full = values.new_empty(len(values), size, size)
    full[:, rows, columns] = full[:, columns, rows] = values[:, 0, 0]
    return full


def shrunk(key: str, value: Tensor) -> tuple[Float[Tensor, "..."], int]:
    """A vector, a matrix of classes or a table of samples, brought to the size that is kept, in float32.

    Returns:
        The tensor, and how many classes one of its entries stands for.

    Example:
        >>> kept, step = shrunk("nc/train/class_mean_cosines", torch.eye(200))
        >>> kept.shape, step
        (torch.Size([100, 100]), 2)
        >>> kept, step = shrunk("nc/train/wm_cosine_per_class", torch.arange(2000.0))
        >>> kept[:3], step
        (tensor([0., 2., 4.]), 2)
    """
    value = value.detach().float().cpu()
    axis = metric_of(LogKey.parse(key).name).axis
    if axis == "direction":
        return value[:MAX_ENTRIES].clone(), 1
    if value.ndim == 1:
        step = math.ceil(len(value) / MAX_ENTRIES)
        return value[::step].clone(), step
    if axis == "sample" or value.shape[0] != value.shape[1]:
        return value[:MAX_ROWS, : MAX_ROWS + 3].clone(), 1
    step = math.ceil(len(value) / MAX_ROWS)
    return block_means(value, step), step


def block_means(matrix: Float[Tensor, "k k"], size: int) -> Float[Tensor, "b b"]:
    """Means over blocks of `size` rows and columns (the last ones may be smaller), leaving NaN entries out.

    Example:
        >>> block_means(torch.tensor([[1.0, 3.0, 5.0], [1.0, 3.0, 7.0], [0.0, 2.0, 4.0]]), 2)
        tensor([[2., 6.],
                [1., 4.]])
    """
    rows = [part.nanmean(0) for part in matrix.split(size)]
    return torch.stack([part.nanmean(1) for part in torch.stack(rows).split(size, 1)], 1)
