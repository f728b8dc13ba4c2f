"""Layers that torch.nn lacks, and activations by their names."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


def named_activation(name: str) -> nn.Module:
    """An activation of torch.nn by its name, in any case (``tanh``, ``relu``, ``Softsign``, ``GELU``), or ``erf``.

    Raises:
        ValueError: torch.nn has no activation of that name.

    Example:
        >>> named_activation("tanh")
        Tanh()
    """
    known = {
        key.lower(): key for key in nn.modules.activation.__all__ if key not in ("MultiheadAttention", "Threshold")
    }
    if name.lower() == "erf":
        return Erf()
    if name.lower() not in known:
        raise ValueError(
            f"activation must be 'erf' or the name of one in torch.nn ({', '.join(known.values())}), got {name!r}."
        )
    return getattr(nn, known[name.lower()])()


class Erf(nn.Module):
    """The error function, an odd activation that torch.nn lacks."""

    def forward(self, x: Tensor) -> Tensor:
        """erf(x), entry by entry."""
        return torch.erf(x)


class Enlarge(nn.Module):
    """Enlarge square images by the largest whole factor that fits, and pad them with zeros.

    Args:
        size: Height and width to reach; larger images are refused.

    Raises:
        ValueError: In `forward`: the images are larger.

    Example:
        >>> Enlarge(32)(torch.ones(1, 1, 8, 8)).sum().item(), Enlarge(32)(torch.ones(1, 1, 28, 28)).sum().item()
        (1024.0, 784.0)
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c size size"]:
        """The images, of the size to reach."""
        height, width = images.shape[-2:]
        if max(height, width) > self.size:
            raise ValueError(f"Images must be at most {self.size} × {self.size}, got {height} × {width}.")
        factor = self.size // max(height, width)
        images = images.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
        rows, columns = self.size - images.shape[-2], self.size - images.shape[-1]
        return nn.functional.pad(images, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
