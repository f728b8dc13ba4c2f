"""Train on two gloo processes, with or without all callbacks, and save weights, optimiser and batches of each rank.

`python -m tests.engine.invisible_script watched|plain FOLDER`
"""

import sys
from pathlib import Path

import lightning as L
import torch

from tests.callbacks.common import loader, trainer
from tests.engine.test_invisible import Recording, all_callbacks


class Keep(L.Callback):
    """Saves what each rank ended with."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def on_train_end(self, trainer: L.Trainer, pl_module: Recording) -> None:
        optimiser = trainer.optimizers[0].state_dict()["state"]
        found = {"weights": pl_module.state_dict(), "optimiser": optimiser, "batches": pl_module.seen}
        torch.save(found | {"next": torch.rand(3)}, Path(self.folder, f"{trainer.global_rank}.pt"))


def main(what: str, folder: str) -> None:
    L.seed_everything(1, verbose=False)
    callbacks = [*(all_callbacks() if what == "watched" else []), Keep(folder)]
    fit = trainer(*callbacks, devices=2, strategy="ddp_spawn", max_epochs=2, default_root_dir=folder)
    fit.fit(Recording(), loader(0), loader(1))


if __name__ == "__main__":
    main(*sys.argv[1:])
