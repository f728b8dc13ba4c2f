"""Fit on the given number of gloo processes, and save each rank's classifier as it is before the first step."""

import sys
from typing import Any

import lightning as L
import torch

from nc_callbacks import CentredMeanInit
from tests.callbacks.common import Classifier, loader, trainer


class Keep(L.Callback):
    """Gathers the classifier of all ranks, and saves them from the first."""

    def __init__(self, file: str) -> None:
        self.file = file

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 0:
            weights = pl_module.all_gather(pl_module.head.weight.detach())
            if trainer.is_global_zero:
                torch.save(list(weights.cpu()), self.file)


def main(processes: int, file: str) -> None:
    # Of 80 samples, the last of three ranks has 26: one batch less than the others.
    callbacks = [CentredMeanInit(head="head", scale=1.0, freeze_backbone=True), Keep(file)]
    trainer(*callbacks, devices=processes, strategy="ddp_spawn").fit(Classifier(), loader(batch_size=26))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
