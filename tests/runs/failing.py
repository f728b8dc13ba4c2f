"""Callbacks that make a run fail: on one rank, or where another run does not start beside it."""

import time
from pathlib import Path

from lightning.pytorch import Callback


class FailOnRank(Callback):
    def __init__(self, rank):
        self.rank = rank

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.global_rank == self.rank:
            raise ArithmeticError(f"rank {self.rank} gave up,\nas it was told")


class FailAlone(Callback):
    def __init__(self, sweep, runs, patience=120):
        self.sweep = Path(sweep)
        self.runs = runs
        self.patience = patience

    def on_fit_start(self, trainer, pl_module):
        (self.sweep / f"{Path(trainer.default_root_dir).name}.training").touch()
        deadline = time.monotonic() + self.patience
        while len(list(self.sweep.glob("*.training"))) < self.runs:
            if time.monotonic() > deadline:
                raise TimeoutError("no other run trains at the same time")
            time.sleep(0.1)
