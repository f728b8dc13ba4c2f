"""A small classifier, data with unequal classes, and a quiet trainer."""

from __future__ import annotations

import copy
import tempfile
import threading
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests import reference

Samples = tuple[torch.Tensor, torch.Tensor]

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


class Tally(threading.local):
    """What tests note of looks, which put back what a model or its data keeps; not this, nor what is in it."""

    def __init__(self) -> None:
        self.calls, self.looks = 0, 0
        self.noted: list[Any] = []

    def __reduce__(self) -> Any:
        return Tally, ()


class Classifier(L.LightningModule):
    """Batch norm, dropout and a hidden layer before the classifier `head`."""

    def __init__(self, bias: bool = True, num_classes: int = K) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, 8), nn.Tanh()
        )
        self.head = nn.Linear(8, num_classes, bias=bias)
        self.tally = Tally()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.tally.calls += 1
        self.tally.looks += not self.training
        return self.head(self.body(x))

    @property
    def forward_calls(self) -> int:
        """Forward passes, those of looks among them."""
        return self.tally.calls

    @property
    def looks(self) -> int:
        """Forward passes in eval mode."""
        return self.tally.looks

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.01)


def whole_set(model: Classifier, data: Samples, train: Samples) -> dict[str, float]:
    """Every number of one split, in float64, from features computed once over the whole set."""
    model = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        features = {s: model.body(x.double()).numpy() for s, (x, _) in (("data", data), ("train", train))}
        outputs = model(data[0].double()).numpy()
    targets, train_targets = data[1].numpy(), train[1].numpy()
    moments = reference.moments(features["data"], targets, K)
    train_means = reference.moments(features["train"], train_targets, K).means
    weight, bias = model.head.weight.detach().numpy(), model.head.bias.detach().numpy()
    m = reference.centred(moments.means)
    nearest = reference.nearest_mean(features["data"], train_means)
    return {
        "nc1": reference.nc1(moments.within, moments.means),
        "nc1_quotient": reference.nc1_quotient(moments.within, moments.means),
        "nc1_cdnv": reference.nc1_cdnv(moments.traces, moments.means),
        "nc2_equinorm": reference.nc2_equinorm(m),
        "nc2_equinorm_weights": reference.nc2_equinorm(weight),
        "nc2_equiangularity": reference.nc2_equiangularity(m),
        "nc2_equiangularity_signed": reference.nc2_equiangularity(m, signed=True),
        "nc2_equiangularity_weights": reference.nc2_equiangularity(weight),
        "nc2_etf": reference.nc2_etf(m),
        "nc2_etf_weights": reference.nc2_etf(weight),
        "nc3": reference.nc3(weight, moments.means),
        "nc3_etf": reference.nc3_etf(weight, moments.means),
        "nc3_uniform_duality": reference.nc3_uniform_duality(weight, moments.means),
        "nc4": reference.nc4(features["data"], weight, train_means, bias),
        "ncc_accuracy": np.mean(nearest == targets),
        "accuracy": np.mean(outputs.argmax(1) == targets),
    }


def trainer(*callbacks: L.Callback, **settings: Any) -> L.Trainer:
    defaults = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "default_root_dir": Path(tempfile.gettempdir(), "nc_callbacks_tests"),
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(callbacks=list(callbacks), **defaults | settings)
