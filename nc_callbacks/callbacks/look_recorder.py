"""The callback that keeps, look by look, the vectors and matrices that a run's page shows."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from nc_callbacks.callbacks.base import CollapseCallback

LOOKS_FILE = "looks.npz"
"""Written to the recorder's folder; `numpy.load` reads it without pickle."""

MAX_LOOKS = 40
"""Looks kept of each vector and matrix."""

MAX_ENTRIES = 1_000
"""Entries kept of a vector."""

MAX_ROWS = 100
"""Rows and columns kept of a matrix of classes."""

DERIVED = ("cumulative_explained_variance", "singular_values")
"""Left out: what is kept gives them."""


class LookRecorder(Callback):
    """Keep the vectors and matrices of the callbacks' looks in ``looks.npz``, bounded in size, for the run's page.

    The file has for each log key ``KEY`` (looks, …) in float32, ``KEY@epochs`` (looks,), counted from 1, and
    ``KEY@step``, how many classes an entry stands for. It is written anew after each look, so that a run that is cut
    off leaves what it has seen.

    - At most 40 looks a key: the first ones, then ever fewer, evenly spaced in the logarithm of the epoch; the last
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

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        late = [c for c in callbacks[callbacks.index(self) :] if isinstance(c, CollapseCallback)]
        if late:
            raise ValueError(
                f"{type(late[0]).__name__} comes after LookRecorder in the trainer's callbacks, so its looks would be "
                "missed: put LookRecorder after it."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Of a fit that was cut off and is repeated, or of an earlier one.
        for key, epochs in self.epochs.items():
            seen = sum(epoch <= trainer.current_epoch for epoch in epochs)
            del epochs[seen:], self.values[key][seen:]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, CollapseCallback) and callback.latest.get("epoch") == trainer.current_epoch:
                for key, value in callback.latest.items():
                    if isinstance(value, Tensor) and not key.endswith(DERIVED):
                        self._keep(key, trainer.current_epoch + 1, value)
        if any(epochs and epochs[-1] == trainer.current_epoch + 1 for epochs in self.epochs.values()):
            self._write()

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs, "values": self.values, "steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = {key: list(epochs) for key, epochs in state_dict["epochs"].items()}
        self.values = {key: list(values) for key, values in state_dict["values"].items()}
        self.steps = dict(state_dict["steps"])

    def _keep(self, key: str, epoch: int, value: Tensor) -> None:
        epochs, values = self.epochs.setdefault(key, []), self.values.setdefault(key, [])
        kept, self.steps[key] = shrunk(key, value)
        epochs.append(epoch)
        values.append(kept)
        if len(epochs) > MAX_LOOKS:
            surplus = least_missed(epochs)
            del epochs[surplus], values[surplus]

    def _write(self) -> None:
        arrays: dict[str, Any] = {}
        for key, values in self.values.items():
            arrays[key] = torch.stack(values).numpy()
            arrays[f"{key}@epochs"] = np.array(self.epochs[key])
            arrays[f"{key}@step"] = np.array(self.steps[key])
        unfinished = self.folder / f"{LOOKS_FILE}.part"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(unfinished, "wb") as file:
                np.savez(file, **arrays)
            os.replace(unfinished, self.folder / LOOKS_FILE)
        except OSError as error:
            rank_zero_warn(f"The looks could not be written to {self.folder}: {error!r}.")


def least_missed(epochs: list[int]) -> int:
    """Place of the epoch whose absence leaves the narrowest gap on a logarithmic axis; never the first or the last.

    Example:
        >>> least_missed([1, 2, 3, 50, 51, 100])
        4
    """
    return min(range(1, len(epochs) - 1), key=lambda i: math.log(epochs[i + 1] / epochs[i - 1]))


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
    if key.endswith("explained_variance"):
        return value[:MAX_ENTRIES].clone(), 1
    if key.endswith("sqi_samples"):
        return value[:MAX_ROWS, : MAX_ROWS + 3].clone(), 1
    if value.ndim == 1:
        step = math.ceil(len(value) / MAX_ENTRIES)
        return value[::step].clone(), step
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
