"""Two gloo processes with odd data: a loader that raises on the second rank during the first look, uneven streams.

`python -m tests.callbacks.odd_ranks_script ddp_spawn|fully_shard FOLDER`
"""

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.utils.data import DataLoader, Dataset, IterableDataset

from nc_callbacks import NeuralCollapse
from tests.callbacks.common import trainer
from tests.callbacks.ranks_script import Sharded, Still, data


class Raising(Dataset):
    """Raises once on the second rank, in the middle of the first look."""

    looking = raised = False

    def __init__(self) -> None:
        self.samples = data(0).dataset

    def __len__(self) -> int:
        return 96

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if Raising.looking and not Raising.raised and dist.get_rank() == 1 and index > 40:
            Raising.raised = True
            raise OSError("the disk is gone")
        return self.samples[index]


class Stream(IterableDataset):
    """40 samples on the first rank, 104 on the second."""

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        samples = data(1).dataset
        return (samples[i] for i in (range(40) if dist.get_rank() == 0 else range(40, 144)))


class Keep(L.Callback):
    """Lets the dataset know of the look, which comes after it, and keeps what each rank ended with."""

    def __init__(self, folder: str, callback: NeuralCollapse) -> None:
        self.folder, self.callback = folder, callback
        self.warnings: list[str] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        warnings.showwarning = lambda message, *_: self.warnings.append(str(message))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        Raising.looking = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        counts = {key: value.tolist() for key, value in self.callback.latest.items() if key.endswith("/counts")}
        epochs = [record["epoch"] for record in self.callback.history]
        found = {"epochs": epochs, "warnings": self.warnings, "counts": counts}
        torch.save(found, Path(self.folder, f"{trainer.global_rank}.pt"))


def main(strategy: str, folder: str) -> None:
    settings = {"devices": 2, "max_epochs": 3, "num_sanity_val_steps": 0, "default_root_dir": folder}
    train = DataLoader(Raising(), 8, shuffle=True)
    if strategy == "fully_shard":
        callback = NeuralCollapse()
        sharding = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
        trainer(Keep(folder, callback), callback, strategy=sharding, **settings).fit(Sharded(), train)
    else:
        callback = NeuralCollapse(splits=["train", "val"])
        fit = trainer(Keep(folder, callback), callback, strategy=strategy, **settings)
        fit.fit(Still(), train, DataLoader(Stream(), 16))


if __name__ == "__main__":
    main(*sys.argv[1:])
