"""A small classifier, data with unequal classes, and a quiet trainer."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

COUNTS = (40, 25, 10, 5)
K = len(COUNTS)


def samples(seed: int = 0, counts: tuple[int, ...] = COUNTS) -> tuple[torch.Tensor, torch.Tensor]:
    """Shuffled 6-dimensional samples around class means."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    targets = targets[torch.randperm(len(targets), generator=generator)]
    centres = torch.randn(len(counts), 6, generator=torch.Generator().manual_seed(99))
    return centres[targets] + 0.7 * torch.randn(len(targets), 6, generator=generator), targets


def loader(seed: int = 0, counts: tuple[int, ...] = COUNTS, **settings: Any) -> DataLoader:
    return DataLoader(TensorDataset(*samples(seed, counts)), **{"batch_size": 16, "shuffle": True} | settings)


class Classifier(L.LightningModule):
    """Batch norm, dropout and a hidden layer before the classifier `head`."""

    def __init__(self, bias: bool = True, num_classes: int = K) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, 8), nn.Tanh()
        )
        self.head = nn.Linear(8, num_classes, bias=bias)
        self.forward_calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.forward_calls += 1
        return self.head(self.body(x))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.01)


def trainer(*callbacks: L.Callback, **settings: Any) -> L.Trainer:
    defaults = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(callbacks=list(callbacks), **defaults | settings)
