"""Callbacks that make a run fail on one rank, or wait until another run trains beside it."""

import os
from pathlib import Path

from lightning.pytorch import Callback


class FailOnRank(Callback):
    def __init__(self, rank):
        self.rank = rank

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.global_rank == self.rank:
            raise ArithmeticError(f"rank {self.rank} gave up,\nas it was told")


class WaitForAnother(Callback):
    """Of two runs, neither goes on before the other has come as far."""

    def __init__(self, pipe):
        self.pipe = Path(pipe)

    def on_fit_start(self, trainer, pl_module):
        if not trainer.is_global_zero:
            return
        try:
            os.mkfifo(self.pipe)
        except FileExistsError:
            self.pipe.open("wb").close()
        else:
            # Opens when a writer does.
            self.pipe.open("rb").close()
