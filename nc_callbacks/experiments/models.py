"""Networks of small images: a backbone that ends in the representation, and a linear `classifier`."""

from __future__ import annotations

import math
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

Shape = tuple[int, int, int]
"""Channels, height and width of an image."""


def named_activation(name: str) -> nn.Module:
    """An activation of torch.nn by its name, in any case: ``tanh``, ``relu``, ``Softsign``, ``GELU``.

    Raises:
        ValueError: torch.nn has no activation of that name.

    Example:
        >>> named_activation("tanh")
        Tanh()
    """
    known = {
        key.lower(): key for key in nn.modules.activation.__all__ if key not in ("MultiheadAttention", "Threshold")
    }
    if name.lower() not in known:
        raise ValueError(f"activation must be the name of one in torch.nn ({', '.join(known.values())}), got {name!r}.")
    return getattr(nn, known[name.lower()])()


class Network(nn.Module):
    """A backbone and a linear classifier on its representation.

    Args:
        backbone: From images (n, c, h, w) to the representation (n, p).
        num_features: p.
        num_classes: k.
        bias: Whether the classifier has one.
    """

    def __init__(self, backbone: nn.Module, num_features: int, num_classes: int, bias: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Linear(num_features, num_classes, bias=bias)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        return self.classifier(self.backbone(images))


def cnn(
    image_shape: Shape,
    num_classes: int,
    activation: str = "tanh",
    num_features: int = 512,
    batch_norm: bool = False,
    bias: bool = False,
) -> Network:
    """Two 3 × 3 convolutions (32 and 64 channels, ReLU), a dense layer of p units, the activation, the classifier.

    The kind of network of Seddik & Tamaazousti (2022): p = 512 and any activation at the representation. Images of 16
    pixels or more are pooled after both convolutions, smaller ones after the second.

    Args:
        image_shape: (c, h, w).
        num_classes: k.
        activation: Activation at the representation.
        num_features: p.
        batch_norm: Normalise before each activation.
        bias: Whether the classifier has a bias.

    Example:
        >>> import torch
        >>> cnn((1, 8, 8), num_classes=10)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    channels, height, width = image_shape
    early_pool = min(height, width) >= 16
    scale = 4 if early_pool else 2

    def normalised(layer: nn.Module, norm: nn.Module) -> list[nn.Module]:
        return [layer, norm] if batch_norm else [layer]

    backbone = nn.Sequential(
        *normalised(nn.Conv2d(channels, 32, 3, padding=1, bias=not batch_norm), nn.BatchNorm2d(32)),
        nn.ReLU(),
        *([nn.MaxPool2d(2)] if early_pool else []),
        *normalised(nn.Conv2d(32, 64, 3, padding=1, bias=not batch_norm), nn.BatchNorm2d(64)),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        *normalised(
            nn.Linear(64 * (height // scale) * (width // scale), num_features, bias=not batch_norm),
            nn.BatchNorm1d(num_features),
        ),
        named_activation(activation),
    )
    return Network(backbone, num_features, num_classes, bias)


def mlp(
    image_shape: Shape,
    num_classes: int,
    activation: str = "tanh",
    num_features: int = 512,
    hidden: tuple[int, ...] = (512,),
    batch_norm: bool = False,
    bias: bool = False,
) -> Network:
    """Dense layers with ReLU, a dense layer of p units, the activation, the classifier.

    Args:
        image_shape: (c, h, w); images are flattened.
        num_classes: k.
        activation: Activation at the representation.
        num_features: p.
        hidden: Units of the layers before the representation.
        batch_norm: Normalise before each activation.
        bias: Whether the classifier has a bias.
    """
    sizes = [math.prod(image_shape), *hidden, num_features]
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(sizes):
        layers.append(nn.Linear(fan_in, fan_out, bias=not batch_norm))
        layers += [nn.BatchNorm1d(fan_out)] if batch_norm else []
        layers.append(nn.ReLU())
    layers[-1] = named_activation(activation)
    return Network(nn.Sequential(*layers), num_features, num_classes, bias)


def resnet18(
    image_shape: Shape,
    num_classes: int,
    activation: str | None = None,
    num_features: int = 512,
    bias: bool = False,
) -> Network:
    """torchvision's ResNet-18 for small images: a 3 × 3 first convolution of stride 1 and no first pooling.

    Args:
        image_shape: (c, h, w).
        num_classes: k.
        activation: With a name, a dense layer of p units and that activation follow the average pooling; without,
            the representation is the average pooling itself (p = 512), as published.
        num_features: p of that dense layer.
        bias: Whether the classifier has a bias.
    """
    from torchvision.models import resnet18 as torchvision_resnet18

    backbone = torchvision_resnet18(weights=None)
    backbone.conv1 = nn.Conv2d(image_shape[0], 64, 3, stride=1, padding=1, bias=False)
    backbone.maxpool = nn.Identity()
    width = backbone.fc.in_features
    if activation is None:
        backbone.fc = nn.Identity()
        return Network(backbone, width, num_classes, bias)
    backbone.fc = nn.Sequential(nn.Linear(width, num_features), named_activation(activation))
    return Network(backbone, num_features, num_classes, bias)
