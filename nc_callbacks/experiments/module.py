"""A classifier as a LightningModule."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float, Int
from lightning.pytorch import LightningModule
from torch import Tensor, nn


class ImageClassifier(LightningModule):
    """Trains a network; logs ``train/loss``, ``train/accuracy``, ``val/loss`` and ``val/accuracy`` (shares) by epoch.

    Where classes are rare (less than half the median number of training samples), also ``val/accuracy_rare``: that of
    their samples alone.

    Args:
        network: From images to outputs (n, k).
        loss: From outputs (n, k) and class indices (n,) to a scalar.
        optimizer: From parameters to an optimiser.
        scheduler: From the optimiser to a schedule that steps after each epoch.
        class_counts: Training samples of each class.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: nn.Module,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
        scheduler: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler],
        class_counts: Int[Tensor, " k"] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.loss = loss
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.rare: Tensor | None
        few = None if class_counts is None else class_counts < class_counts.float().quantile(0.5) / 2
        self.register_buffer("rare", few if few is not None and few.any() else None, persistent=False)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Outputs (n, k) of images."""
        return self.network(images)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch, logged with the accuracy."""
        return self._step(batch, "train")

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch, logged with the accuracy."""
        return self._step(batch, "val")

    def _step(self, batch: list[Tensor], split: str) -> Tensor:
        images, targets = batch
        outputs = self(images)
        loss = self.loss(outputs, targets)
        accuracy = (outputs.argmax(1) == targets).float().mean()
        values = {f"{split}/loss": loss, f"{split}/accuracy": accuracy}
        settings: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": len(images), "sync_dist": True}
        # On the bar: of training the loss, of validation the accuracy.
        for name, value in values.items():
            self.log(name, value, prog_bar=name in ("train/loss", "val/accuracy"), **settings)
        if split == "val" and self.rare is not None:
            # Every batch logs, one without rare samples with weight 0: ranks wait for each other.
            right = (outputs.argmax(1) == targets)[self.rare[targets]].float()
            share = right.sum() / max(len(right), 1)
            self.log("val/accuracy_rare", share, on_step=False, on_epoch=True, batch_size=len(right), sync_dist=True)
        return loss

    def configure_optimizers(self) -> Any:
        """The optimiser, and the schedule that steps after each epoch."""
        optimizer = self.make_optimizer(self.parameters())
        return {"optimizer": optimizer, "lr_scheduler": self.make_scheduler(optimizer)}
