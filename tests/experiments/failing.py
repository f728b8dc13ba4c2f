"""A callback that makes a run fail on one rank."""

from lightning.pytorch import Callback


class FailOnRank(Callback):
    def __init__(self, rank):
        self.rank = rank

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.global_rank == self.rank:
            raise ArithmeticError(f"rank {self.rank} gave up,\nas it was told")
