"""Fit on several gloo processes with a learning rate of 0: what the callbacks found, the same on any number of them.

`python -m tests.engine.ranks_script STRATEGY PROCESSES MODE FEATURE_CACHE FILE`
"""

import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nc_callbacks import FeatureSpectrum, NeuralCollapse, QuasiInterpolation, WeightMeanAlignment
from nc_callbacks.callbacks.base import CollapseCallback
from tests.callbacks.common import Classifier, samples, trainer

COUNTS = (520, 330, 120, 29, 4)  # 1,003 samples in batches of 32: among 2, 3 and 4 ranks some have a surplus batch
K = len(COUNTS)


def data(seed: int, **settings: bool) -> DataLoader:
    """The rarest class lies at multiples of 12, so that among 2, 3 or 4 ranks only the first has any."""
    x, y = samples(seed, COUNTS)
    order = (y != K - 1).nonzero().squeeze(1).tolist()
    for place, rare in enumerate((y == K - 1).nonzero().squeeze(1).tolist()):
        order.insert(12 * place, rare)
    return DataLoader(TensorDataset(x[order], y[order]), 32, **settings)


class Still(Classifier):
    """No batch norm, and weights that do not move, so that any number of processes has the same network."""

    def __init__(self) -> None:
        super().__init__(num_classes=K)
        self.body = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.Tanh())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.0)


class Sharded(Still):
    """Weights are DTensors, a part on each process."""

    def configure_model(self) -> None:
        if isinstance(self.head.weight, nn.Parameter) and not hasattr(self.head.weight, "full_tensor"):
            from torch.distributed.fsdp import fully_shard

            mesh = self.device_mesh["data_parallel"]
            for part in (self.body[0], self.body[2], self.head, self):
                fully_shard(part, mesh=mesh)


class Split(Still):
    """Rows and columns of the weights lie on different processes, which have the same data."""

    def configure_model(self) -> None:
        from torch.distributed.tensor import Replicate
        from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

        if not hasattr(self.head.weight, "full_tensor"):
            plan = {
                "body.0": ColwiseParallel(),
                "body.2": RowwiseParallel(),
                "head": ColwiseParallel(output_layouts=Replicate()),
            }
            parallelize_module(self, self.device_mesh["tensor_parallel"], plan)


def fit(strategy: str, processes: int, mode: str, feature_cache: str, folder: str, *others: L.Callback) -> list:
    """The callbacks after the fit."""
    settings = {"splits": ["train", "val"], "feature_cache": feature_cache, "mode": mode}
    tables = {} if mode == "online" else {"samples": [0, 7, 80]}
    callbacks: list = [
        NeuralCollapse(layers=["body.2"], mse_weight_decay=0.1, ood_loader=data(5), ood_scores=True, **settings),
        WeightMeanAlignment(a2_residual=True, implicit="full", **settings),
        QuasiInterpolation(outputs="softmax", **tables, **settings),
        FeatureSpectrum(**settings),
    ]
    model, precision, how = Still(), "32-true", strategy
    if strategy == "float64":
        precision, how = "64-true", "auto"
    elif strategy == "fully_shard":
        model, how = Sharded(), ModelParallelStrategy(data_parallel_size=processes, tensor_parallel_size=1)
    elif strategy == "tensor_parallel":
        model, how = Split(), ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=processes)
    run = trainer(*callbacks, *others, devices=processes, strategy=how, precision=precision, default_root_dir=folder)
    run.fit(model, data(0, shuffle=True), data(1))
    return callbacks


def latest(*arguments: Any) -> list[dict[str, Any]]:
    """What each callback found last."""
    return [callback.latest for callback in fit(*arguments)]


class Keep(L.Callback):
    """Saves what the callbacks found, from the first rank: it may be a process of its own."""

    def __init__(self, file: str) -> None:
        self.file = file

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            found = [callback.latest for callback in trainer.callbacks if isinstance(callback, CollapseCallback)]
            torch.save(found, self.file)


def main(strategy: str, processes: int, mode: str, feature_cache: str, file: str) -> None:
    fit(strategy, processes, mode, feature_cache, str(Path(file).parent), Keep(file))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
