"""Fits that time what a look costs: a network, its images, a trainer with nothing else, and hooks that read a clock."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from nc_callbacks import FeatureSpectrum, NeuralCollapse, QuasiInterpolation, WeightMeanAlignment
from nc_callbacks.experiments.data import ImageData
from nc_callbacks.experiments.models import cnn, resnet18
from nc_callbacks.experiments.module import ImageClassifier
from speed.measure import Options

NETWORKS = {"cnn": cnn, "resnet18": resnet18}
CLASSES = 10
BATCH = 128

Images = tuple[Tensor, Tensor]


class Idle(ImageClassifier):
    """Trains nothing: its epochs only bring the looks."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:  # type: ignore[override]
        return None


class Clock(L.Callback):
    """Calls functions at hooks, by its place before or after the other callbacks."""

    def __init__(self, **hooks: Callable[..., None]) -> None:
        for name, hook in hooks.items():
            setattr(self, name, hook)


def all_four(**settings: object) -> list[L.Callback]:
    kinds: list = [NeuralCollapse, WeightMeanAlignment, QuasiInterpolation, FeatureSpectrum]
    return [kind(**settings) for kind in kinds]


def large_images(folder: Path | None) -> Images:
    """The training images, or random ones of their shape: nothing timed depends on what they show."""
    if folder is None:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(20_480, 1, 28, 28, generator=generator)
        return images, torch.randint(CLASSES, (len(images),), generator=generator)
    data = ImageData("fashion_mnist", root=folder, download=False)
    data.setup()
    assert data.train_set is not None
    return data.train_set.tensors


def first(images: Images, samples: int) -> Images:
    return images[0][:samples], images[1][:samples]


def loader_of(images: Images, size: int = BATCH) -> DataLoader:
    return DataLoader(TensorDataset(*images), size, shuffle=True, drop_last=True)


def model_of(kind: type[ImageClassifier], network: str, images: Images) -> ImageClassifier:
    torch.manual_seed(0)
    return kind(
        NETWORKS[network](image_shape=tuple(images[0].shape[1:]), num_classes=CLASSES),
        loss=torch.nn.CrossEntropyLoss(),
        optimizer=partial(torch.optim.SGD, lr=0.01),
        scheduler=partial(torch.optim.lr_scheduler.MultiStepLR, milestones=[]),
    )


def fit(
    model: L.LightningModule,
    loader: DataLoader,
    callbacks: list[L.Callback],
    epochs: int,
    options: Options,
    precision: Any = "32-true",
    val_loader: DataLoader | None = None,
) -> None:
    """Train for so many epochs; validation batches are there for the looks alone."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        L.Trainer(
            accelerator=options.device.type,
            devices=1,
            precision=precision,
            max_epochs=epochs,
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            check_val_every_n_epoch=epochs + 1,
        ).fit(model, loader, val_loader)


@torch.inference_mode()
def infer(model: L.LightningModule, batches: Iterable[Sequence[Tensor]]) -> None:
    model.eval()
    for images, _ in batches:
        model(images.to(model.device))
    model.train()
