"""Two gloo processes, of which the second meets trouble of another kind in each look; uneven streams."""

import warnings
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from nc_callbacks import ClassStatistics, NeuralCollapse
from nc_callbacks.engine.decisions import Decisions
from nc_callbacks.engine.look import Look
from nc_callbacks.statistics import classes
from tests.callbacks.common import Tally, trainer
from tests.engine.ranks_script import Sharded, Still, data

TROUBLES = (
    "loader",
    "batch_fn",
    "forward",
    "decisions",
    "waiting",
    "statistics",
    "measure",
    "memory",
    "no targets",
    "none",
)
"""By epoch."""


# What trouble there is; kept where a look puts nothing back.
NOW = Tally()
NOW.kind = "none"


class Trouble(L.Callback):
    """Says which trouble the second rank is in: one while a look runs, none while the model trains."""

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        NOW.kind = "none"

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        NOW.kind = TROUBLES[trainer.current_epoch]

    @staticmethod
    def of(kind: str) -> bool:
        return NOW.kind == kind and dist.get_rank() == 1


class Images(Dataset):
    """96 samples."""

    def __init__(self) -> None:
        self.samples = data(0).dataset

    def __len__(self) -> int:
        return 96

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if Trouble.of("loader") and index > 40:
            raise OSError("the disk is gone")
        return self.samples[index]


class Stream(IterableDataset):
    """Each rank has samples of its own."""

    def __init__(self, seed: int, first: int, second: int) -> None:
        self.samples, self.parts = data(seed).dataset, (range(first), range(first, first + second))

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for number, index in enumerate(self.parts[dist.get_rank()]):
            if Trouble.of("loader") and number > 20:
                raise OSError("the disk is gone")
            yield self.samples[index]


class Watched(NeuralCollapse):
    """Fails to measure on the second rank."""

    def measure(self, observation):
        if Trouble.of("measure"):
            raise ArithmeticError("no number")
        return super().measure(observation)


def batch_fn(batch):
    if Trouble.of("batch_fn"):
        raise KeyError("label")
    return batch[0], None if Trouble.of("no targets") else batch[1]


def forward_fn(module, inputs):
    outputs = module(inputs)
    if Trouble.of("forward"):
        raise RuntimeError("no kernel")
    return outputs


def fail_in(owner: Any, method: str, trouble: str, error: Exception) -> None:
    """Let a method or function of the package raise in the look of that trouble."""
    plain = getattr(owner, method)

    def failing(*arguments):
        if Trouble.of(trouble):
            # Memory runs out once, and is enough for the second attempt.
            NOW.kind = "none"
            raise error
        return plain(*arguments)

    setattr(owner, method, failing)


class Keep(L.Callback):
    """Keeps what each rank ended with."""

    def __init__(self, callback: NeuralCollapse) -> None:
        self.callback = callback
        self.warnings: list[str] = []
        self.counts: list[dict] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        warnings.showwarning = lambda message, *_: self.warnings.append(str(message))
        fail_in(Decisions, "update", "decisions", FloatingPointError("no mean"))
        fail_in(ClassStatistics, "_add", "waiting", ArithmeticError("no product"))
        fail_in(classes, "moments_of", "statistics", ArithmeticError("no sum"))
        fail_in(Look, "statistics", "memory", torch.OutOfMemoryError("too large"))

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._note()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._note()

    def _note(self) -> None:
        latest = self.callback.latest
        self.counts.append({key: value.tolist() for key, value in latest.items() if key.endswith("/counts")})


def fit(kind: str, folder: str) -> dict[str, Any]:
    """Epochs of the looks, warnings, and counts by epoch, of this rank; kinds are ddp, stream and fully_shard."""
    one_sample = DataLoader(TensorDataset(*data(5).dataset[:1]), 4)
    callback = Watched(splits=["train", "val"], batch_fn=batch_fn, forward_fn=forward_fn, ood_loader=one_sample)
    sharded = kind == "fully_shard"
    keep = Keep(callback)
    run = trainer(
        Trouble(),
        keep,
        callback,
        strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1) if sharded else "ddp",
        devices=2,
        max_epochs=len(TROUBLES),
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    train = DataLoader(Stream(0, 48, 48), 8) if kind == "stream" else DataLoader(Images(), 8, shuffle=True)
    # Validation leaves the sharded model's ranks out of step where they have different numbers of batches.
    val = Stream(1, 40, 40 if sharded else 104)
    run.fit(Sharded() if sharded else Still(), train, DataLoader(val, 16))
    epochs = [record["epoch"] for record in callback.history]
    return {"epochs": epochs, "warnings": keep.warnings, "counts": keep.counts}
