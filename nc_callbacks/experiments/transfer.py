"""Common parts of the transfer experiments: source networks, features computed once, heads trained many at a time."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from jaxtyping import Float, Int
from lightning.pytorch import Trainer
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.utils.data import DataLoader, TensorDataset

from nc_callbacks.experiments.models import Network
from nc_callbacks.experiments.module import ImageClassifier
from nc_callbacks.probe import undisturbed

Row = Mapping[str, Any]


def trained_network(
    config: DictConfig, images: Float[Tensor, "n c h w"], targets: Int[Tensor, " n"], epochs: int, **model: Any
) -> Network:
    """The configured network, trained with the configured loss and optimiser (for 0 epochs: with random weights).

    It lies on the device of the configured trainer.

    Args:
        config: The configuration of `train.py`.
        images: Training images.
        targets: Class indices 0…k−1, each with samples.
        epochs: How long.
        model: Overrides ``config.model``.
    """
    network = instantiate(config.model, image_shape=images.shape[1:], num_classes=int(targets.max()) + 1, **model)
    return further_trained(config, network, images, targets, epochs)


def further_trained(
    config: DictConfig, network: Network, images: Float[Tensor, "n c h w"], targets: Int[Tensor, " n"], epochs: int
) -> Network:
    """The network itself, trained on with the configured loss and optimiser; see `trained_network`."""
    settings = {"max_epochs": epochs, "logger": False, "enable_checkpointing": False, "callbacks": []}
    trainer: Trainer = instantiate(config.trainer, **settings)
    if epochs:
        optimisation = {name: instantiate(config[name]) for name in ("loss", "optimizer", "scheduler")}
        loader = DataLoader(TensorDataset(images, targets), batch_size=config.data.batch_size, shuffle=True)
        trainer.fit(ImageClassifier(network, **optimisation), loader)
    # Lightning takes it back to the CPU at the end.
    return network.to(trainer.strategy.root_device)


def features_of(network: Network, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n p"]:
    """The representation of images, in eval mode and without gradients, on the CPU."""
    return _answers_of(network, network.backbone, images)


def outputs_of(network: Network, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
    """The outputs for images, in eval mode and without gradients, on the CPU."""
    return _answers_of(network, network, images)


def _answers_of(network: Network, part: nn.Module, images: Tensor) -> Tensor:
    device = next(network.parameters()).device
    with undisturbed(network):
        return torch.cat([part(batch.to(device)).flatten(1).cpu() for batch in images.split(512)])


def with_noise(images: Float[Tensor, "n c h w"], variance: float, generator: torch.Generator) -> Tensor:
    """Images plus Gaussian noise of that variance (pixels lie in [0, 1]; the sum is not clipped)."""
    return images + variance**0.5 * torch.randn(images.shape, generator=generator)


def train_heads(*args: Any, **settings: Any) -> Float[Tensor, "s evaluations"]:
    """Test accuracies of `train_and_answer`."""
    return train_and_answer(*args, **settings)[0]


def train_and_answer(
    heads: Sequence[nn.Module],
    train: tuple[Float[Tensor, "s n p"], Int[Tensor, "s n"]],
    test: tuple[Float[Tensor, "s m p"], Int[Tensor, " m"]],
    evaluate_at: Sequence[int],
    batch_size: int,
    learning_rate: float,
) -> tuple[Float[Tensor, "s evaluations"], Float[Tensor, "s m k"]]:
    """Train s heads of one kind, each on its own features, with Adam and cross-entropy, all in one loop.

    It runs on the device of the features.

    Batches are drawn as in epochs without replacement, from the same seed for any kind of head.

    Args:
        heads: Linear heads of the same architecture.
        train: Features and class indices of each head.
        test: Test features of each head and the class indices of all.
        evaluate_at: Numbers of steps, increasing, after which the test accuracy is taken; training ends with the last.
        batch_size: Samples a step.
        learning_rate: Of Adam.

    Returns:
        Test accuracies, shares, and the logits of the test samples after the last step, both on the CPU.
    """
    for head in heads:
        head.to(train[0].device)
    parameters, buffers = stack_module_state(list(heads))
    logits = vmap(lambda p, b, x: functional_call(heads[0], (p, b), (x,)))
    optimizer = torch.optim.Adam(parameters.values(), learning_rate)
    features, targets = train
    number = torch.arange(len(heads), device=features.device)[:, None]
    batches = _batches(targets.shape, batch_size, evaluate_at[-1]).to(features.device)
    accuracies = []
    for step in range(evaluate_at[-1] + 1):
        if step in evaluate_at:
            with torch.no_grad():
                answers = logits(parameters, buffers, test[0])
                accuracies.append((answers.argmax(-1) == test[1]).float().mean(1))
        if step < evaluate_at[-1]:
            batch = number, batches[step]
            loss = F.cross_entropy(logits(parameters, buffers, features[batch]).flatten(0, 1), targets[batch].flatten())
            optimizer.zero_grad()
            # Each head sees the gradient of its own mean.
            (len(heads) * loss).backward()
            optimizer.step()
    return torch.stack(accuracies, 1).cpu(), answers.cpu()


def _batches(shape: torch.Size, batch_size: int, steps: int) -> Int[Tensor, "steps s b"]:
    """Indices of the samples of each step, head by head."""
    s, n = shape
    generator, size = torch.Generator().manual_seed(0), min(batch_size, n)
    per_epoch = n // size
    epochs = [
        torch.stack([torch.randperm(n, generator=generator)[: per_epoch * size] for _ in range(s)])
        for _ in range(-(-steps // per_epoch))
    ]
    return torch.cat([epoch.view(s, per_epoch, size).transpose(0, 1) for epoch in epochs])[:steps]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write dicts with the same keys as CSV."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def print_rows(title: str, rows: Sequence[Row]) -> None:
    """Print dicts with the same keys as a table."""
    cells = [list(rows[0])] + [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print(f"\n{title}")
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
