"""Initial weights as deep-learning frameworks have them by default."""

from __future__ import annotations

from torch import nn


def initialised(network: nn.Module, init: str) -> None:
    """Set the weights of convolutions and dense layers, in place, as a framework does by default.

    Args:
        network: With convolutions and dense layers.
        init: ``torch`` leaves PyTorch's; ``keras`` draws weights from Glorot's uniform distribution, ±√(6 / (fan in +
            fan out)), and sets biases to zero, as Keras does.

    Raises:
        ValueError: There is no such initialisation.
    """
    if init not in ("torch", "keras"):
        raise ValueError(f"init must be 'torch' or 'keras', got {init!r}.")
    if init == "torch":
        return
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
