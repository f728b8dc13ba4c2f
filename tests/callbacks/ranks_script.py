"""Fit on the given number of gloo processes with a learning rate of 0, and save what the callbacks found."""

import sys
from pathlib import Path

import lightning as L
import torch
from torch import nn

from nc_callbacks import FeatureSpectrum, NeuralCollapse, QuasiInterpolation, WeightMeanAlignment
from tests.callbacks.common import Classifier, loader, trainer

COUNTS = (48, 30, 14, 5)  # 97 samples in batches of 16: among two and three ranks some have a surplus batch


class Still(Classifier):
    """No batch norm, and weights that do not move, so that any number of processes has the same network."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.Tanh())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.0)


class Keep(L.Callback):
    """Saves what the callbacks found, from the first rank."""

    def __init__(self, file: str, callbacks: list) -> None:
        self.file, self.callbacks = file, callbacks

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            torch.save([callback.latest for callback in self.callbacks], self.file)


def main(processes: int, file: str, feature_cache: str) -> None:
    settings = {"splits": ["train", "val"], "feature_cache": feature_cache}
    callbacks: list = [
        NeuralCollapse(layers=["body.2"], mse_weight_decay=0.1, ood_loader=loader(5, (9, 8)), **settings),
        WeightMeanAlignment(a2_residual=True, implicit="full", **settings),
        QuasiInterpolation(outputs="softmax", samples=[0, 7, 80], **settings),
        FeatureSpectrum(**settings),
    ]
    # The processes are spawned: what they found comes back through a file.
    callbacks.append(Keep(file, list(callbacks)))
    strategy = "ddp_spawn" if processes > 1 else "auto"
    folder = Path(file).parent
    fit = trainer(*callbacks, devices=processes, strategy=strategy, default_root_dir=folder)
    fit.fit(Still(), loader(0, COUNTS), loader(1, COUNTS))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
