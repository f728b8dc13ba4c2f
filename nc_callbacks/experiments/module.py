"""A classifier as a LightningModule."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch import LightningModule
from torch import Tensor, nn


class ImageClassifier(LightningModule):
    """Trains a network; logs ``train/loss``, ``train/accuracy``, ``val/loss`` and ``val/accuracy`` (shares) by epoch.

    Args:
        network: From images to outputs (n, k).
        loss: From outputs (n, k) and class indices (n,) to a scalar.
        optimizer: From parameters to an optimiser.
        scheduler: From the optimiser to a schedule that steps after each epoch.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: nn.Module,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        scheduler: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler],
    ) -> None:
        super().__init__()
        self.network = network
        self.loss = loss
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        return self.network(images)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self._step(batch, "train")

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self._step(batch, "val")

    def _step(self, batch: list[Tensor], split: str) -> Tensor:
        images, targets = batch
        outputs = self(images)
        loss = self.loss(outputs, targets)
        accuracy = (outputs.argmax(1) == targets).float().mean()
        values = {f"{split}/loss": loss, f"{split}/accuracy": accuracy}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=len(images), sync_dist=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.parameters())
        return {"optimizer": optimizer, "lr_scheduler": self.make_scheduler(optimizer)}
