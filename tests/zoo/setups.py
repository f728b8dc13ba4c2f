"""What a row of the zoo is made of: a module, a loader, and where its classifier is known to be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

K = 4
"""Classes."""

BATCH, BATCHES = 12, 2


@dataclass
class Setup:
    """A module that is trained for an epoch, and how its classifier is read."""

    module: L.LightningModule
    loader: Any
    head: str
    """Dotted name of the layer that is known to be the classifier."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What a user passes."""
    loader_of_fit: Any = None
    """Where training has another loader than the samples that count."""
    callbacks: Sequence[L.Callback] = ()
    """Beside ours."""
    trainer: Mapping[str, Any] = field(default_factory=dict)
    run: Callable[[Any, Any], Any] = lambda m, batch: m(**batch) if isinstance(batch, dict) else m(batch[0])
    """The forward pass of a batch."""
    targets: Callable[[Any], Tensor] | None = None
    """Of a batch, one a row of the classifier's input; −100 where it does not count."""
    positions: Callable[[Tensor], Tensor] = lambda x: x.flatten(1)
    """Rows of the classifier's input."""
    weight: Callable[[Any], tuple[Tensor | None, Tensor | None]] = lambda head: (head.weight.flatten(1), head.bias)
    """W and b; None where the classifier is not affine."""
    fit: Callable[[Any, list[L.Callback], L.Callback], list[L.Callback] | None] | None = None
    """Trains it, with our callbacks and one that is told of the end of epochs; returns ours, where they are others."""
    seen: str = "after fit"
    """Whose weights the last look has seen: those ``"after fit"``, or those at the end of the last ``"epoch"``."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    group: str
    name: str
    make: Callable[[], Setup]
    needs: str = ""
    """The library that has to be there."""
    refused: str = ""
    """What the sentence says, where the callbacks refuse."""
    remark: str = ""
    """What a user passes, or the way out."""
    warns: str = ""
    """What the one warning says, where there is one."""


class Wrapped(L.LightningModule):
    """Any model in a LightningModule, as people write it."""

    def __init__(self, model: nn.Module, rate: float = 1e-2) -> None:
        super().__init__()
        self.model, self.rate = model, rate

    def forward(self, x: Any) -> Any:
        return self.model(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        outputs = self(batch[0])
        return nn.functional.cross_entropy(getattr(outputs, "logits", outputs), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), self.rate)


class HuggingFace(Wrapped):
    """A model of transformers', which computes its own loss from a batch of names."""

    def forward(self, **batch: Any) -> Any:
        return self.model(**batch)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(**batch).loss


def averaging(model: nn.Module) -> nn.Module:
    """A model whose batch norms know the data's statistics after a few batches."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
    return model


def labels(seed: int = 0) -> Tensor:
    """Shuffled, of classes of unequal size, all in each batch."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.tensor([5, 3, 2, 2])
    one = torch.repeat_interleave(torch.arange(K), counts)
    return torch.cat([one[torch.randperm(len(one), generator=generator)] for _ in range(BATCHES)])


def around_means(*shape: int, seed: int = 0, spread: float = 0.5) -> tuple[Tensor, Tensor]:
    """Samples of a shape, each class around a pattern of its own."""
    y = labels(seed)
    centres = torch.randn(K, *shape, generator=torch.Generator().manual_seed(5))
    noise = torch.randn(len(y), *shape, generator=torch.Generator().manual_seed(seed + 1))
    return centres[y] + spread * noise, y


def pairs(*shape: int) -> DataLoader:
    """Batches (inputs, class indices)."""
    return DataLoader(list(zip(*around_means(*shape), strict=True)), batch_size=BATCH)


def names(**columns: Tensor) -> DataLoader:
    """Batches that are dicts of names."""
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return DataLoader(rows, batch_size=BATCH)


def tokens(length: int = 7, vocabulary: int = 40, per_token: bool = False) -> dict[str, Tensor]:
    """Padded texts whose words depend on their class, with their mask and labels."""
    y, generator = labels(), torch.Generator().manual_seed(1)
    kinds = torch.randint(K, (len(y), length), generator=generator) if per_token else y[:, None].expand(-1, length)
    words = 2 + kinds * 9 + torch.randint(9, (len(y), length), generator=generator)
    lengths = torch.randint(3, length + 1, (len(y),), generator=generator)
    mask = (torch.arange(length) < lengths[:, None]).long()
    wanted = kinds.masked_fill(mask == 0, -100) if per_token else y
    return {"input_ids": words * mask % vocabulary, "attention_mask": mask, "labels": wanted}


def as_arrays(*tensors: Tensor) -> list[np.ndarray]:
    """In float64, where they are numbers of floating point."""
    return [t.detach().double().numpy() if t.is_floating_point() else t.numpy() for t in tensors]
