"""Two gloo processes, of which the second meets trouble of another kind in each look; uneven streams.

`python -m tests.engine.odd_ranks_script ddp|stream|fully_shard FOLDER`
"""

import sys
import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from nc_callbacks import ClassStatistics, NeuralCollapse
from nc_callbacks.engine.look import Look
from nc_callbacks.engine.split import Decisions
from tests.callbacks.common import trainer
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


class Trouble(L.Callback):
    """Says which trouble the second rank is in: one while a look runs, none while the model trains."""

    now = "none"

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        Trouble.now = "none"

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        Trouble.now = TROUBLES[trainer.current_epoch]

    @staticmethod
    def of(kind: str) -> bool:
        return Trouble.now == kind and dist.get_rank() == 1


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


def fail_in(owner: type, method: str, trouble: str, error: Exception) -> None:
    """Let a method of the package raise in the look of that trouble."""
    plain = getattr(owner, method)

    def failing(self, *arguments):
        if Trouble.of(trouble):
            # Memory runs out once, and is enough for the second attempt.
            Trouble.now = "none"
            raise error
        return plain(self, *arguments)

    setattr(owner, method, failing)


class Keep(L.Callback):
    """Keeps what each rank ended with."""

    def __init__(self, folder: str, callback: NeuralCollapse) -> None:
        self.folder, self.callback = folder, callback
        self.warnings: list[str] = []
        self.counts: list[dict] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        warnings.showwarning = lambda message, *_: self.warnings.append(str(message))
        fail_in(Decisions, "update", "decisions", FloatingPointError("no mean"))
        fail_in(ClassStatistics, "_add", "waiting", ArithmeticError("no product"))
        fail_in(ClassStatistics, "compute", "statistics", ArithmeticError("no sum"))
        fail_in(Look, "gathered", "memory", torch.OutOfMemoryError("too large"))

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._note()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._note()
        epochs = [record["epoch"] for record in self.callback.history]
        found = {"epochs": epochs, "warnings": self.warnings, "counts": self.counts}
        torch.save(found, Path(self.folder, f"{trainer.global_rank}.pt"))

    def _note(self) -> None:
        latest = self.callback.latest
        self.counts.append({key: value.tolist() for key, value in latest.items() if key.endswith("/counts")})


def main(kind: str, folder: str) -> None:
    one_sample = DataLoader(TensorDataset(*data(5).dataset[:1]), 4)
    callback = Watched(splits=["train", "val"], batch_fn=batch_fn, forward_fn=forward_fn, ood_loader=one_sample)
    short = timedelta(seconds=60)
    strategy = (
        ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, timeout=short)
        if kind == "fully_shard"
        else DDPStrategy(timeout=short)
    )
    fit = trainer(
        Trouble(),
        Keep(folder, callback),
        callback,
        strategy=strategy,
        devices=2,
        max_epochs=len(TROUBLES),
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    train = DataLoader(Stream(0, 48, 48), 8) if kind == "stream" else DataLoader(Images(), 8, shuffle=True)
    # Validation leaves the sharded model's ranks out of step where they have different numbers of batches.
    val = Stream(1, 40, 40 if kind == "fully_shard" else 104)
    fit.fit(Sharded() if kind == "fully_shard" else Still(), train, DataLoader(val, 16))


if __name__ == "__main__":
    main(*sys.argv[1:])
