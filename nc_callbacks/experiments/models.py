"""Networks of small images: a backbone that ends in the representation, and a linear `classifier`."""

from __future__ import annotations

import math
from collections import OrderedDict
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from nc_callbacks.experiments.initialisation import initialised
from nc_callbacks.experiments.layers import Enlarge, Erf, named_activation
from nc_callbacks.transfer.etf_head import SimplexETFHead

__all__ = ["Enlarge", "Erf", "Network", "cnn", "conv_1fc", "conv_2fc", "mlp", "named_activation", "resnet18"]

Shape = tuple[int, int, int]
"""Channels, height and width of an image."""


def _dropped(share: float) -> list[nn.Module]:
    return [nn.Dropout(share)] if share else []


class Network(nn.Module):
    """A backbone and a linear classifier on its representation.

    Args:
        backbone: From images (n, c, h, w) to the representation.
        classifier: From the representation to outputs (n, k), or (n, k, 1, 1).
    """

    def __init__(self, backbone: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Outputs (n, k) of images."""
        return self.classifier(self.backbone(images)).flatten(1)


def _network(backbone: nn.Module, p: int, k: int, bias: bool, init: str, classifier: str) -> Network:
    if classifier not in ("linear", "etf"):
        raise ValueError(f"classifier must be 'linear' or 'etf', got {classifier!r}.")
    network = Network(backbone, nn.Linear(p, k, bias=bias))
    initialised(network, init)
    if classifier == "etf":
        network.classifier = SimplexETFHead(p, k)
    return network


def cnn(
    image_shape: Shape,
    num_classes: int,
    activation: str = "tanh",
    num_features: int = 512,
    batch_norm: bool = False,
    bias: bool = False,
    init: str = "torch",
    dropout: float = 0.0,
    classifier: str = "linear",
    convolutions: int = 1,
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
        init: Initial weights, as `initialised` has them.
        dropout: Share of the inputs of each dense layer, the classifier among them, left out at random in training.
        classifier: ``linear``, or ``etf``: fixed, a simplex ETF on features of length 1.
        convolutions: How many of 32 channels, and of 64, one after the other.

    Example:
        >>> cnn((1, 8, 8), num_classes=10)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    channels, height, width = image_shape
    early_pool = min(height, width) >= 16
    scale = 4 if early_pool else 2

    def normalised(layer: nn.Module, norm: nn.Module) -> list[nn.Module]:
        return [layer, norm] if batch_norm else [layer]

    def stage(before: int, after: int) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for width in (before, *[after] * (convolutions - 1)):
            convolution = nn.Conv2d(width, after, 3, padding=1, bias=not batch_norm)
            layers += [*normalised(convolution, nn.BatchNorm2d(after)), nn.ReLU()]
        return layers

    backbone = nn.Sequential(
        *stage(channels, 32),
        *([nn.MaxPool2d(2)] if early_pool else []),
        *stage(32, 64),
        nn.MaxPool2d(2),
        nn.Flatten(),
        *_dropped(dropout),
        *normalised(
            nn.Linear(64 * (height // scale) * (width // scale), num_features, bias=not batch_norm),
            nn.BatchNorm1d(num_features),
        ),
        named_activation(activation),
        *_dropped(dropout),
    )
    return _network(backbone, num_features, num_classes, bias, init, classifier)


def mlp(
    image_shape: Shape,
    num_classes: int,
    activation: str = "tanh",
    num_features: int = 512,
    hidden: tuple[int, ...] = (512,),
    batch_norm: bool = False,
    bias: bool = False,
    init: str = "torch",
    dropout: float = 0.0,
    classifier: str = "linear",
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
        init: Initial weights, as `initialised` has them.
        dropout: Share of the inputs of each dense layer but the first left out at random in training.
        classifier: ``linear``, or ``etf``: fixed, a simplex ETF on features of length 1.
    """
    sizes = [math.prod(image_shape), *hidden, num_features]
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(sizes):
        layers.append(nn.Linear(fan_in, fan_out, bias=not batch_norm))
        layers += [nn.BatchNorm1d(fan_out)] if batch_norm else []
        layers += [nn.ReLU(), *_dropped(dropout)]
    layers[-2 if dropout else -1] = named_activation(activation)
    return _network(nn.Sequential(*layers), num_features, num_classes, bias, init, classifier)


def conv_1fc(
    image_shape: Shape,
    num_classes: int,
    activation: str = "relu",
    batch_norm: bool = False,
    bias: bool = False,
    width: int = 32,
) -> Network:
    """Lindegaard's homogeneous network «1FC»: four 3 × 3 convolutions of stride 2 and a 2 × 2 one to the k classes.

    32, 64, 128 and 256 channels on images enlarged to 32 × 32; the representation is 256 × 2 × 2, p = 1,024.

    Args:
        image_shape: (c, h, w).
        num_classes: k.
        activation: Activation at the representation; the others are ReLU.
        batch_norm: Normalise before each activation. The network is homogeneous without.
        bias: Whether all layers have biases. The network is homogeneous without.
        width: Channels of the first convolution; those after it scale with them.
    """
    return Network(
        _convolutions(image_shape[0], activation, batch_norm, bias, width),
        nn.Conv2d(8 * width, num_classes, 2, bias=bias),
    )


def conv_2fc(
    image_shape: Shape,
    num_classes: int,
    activation: str = "relu",
    batch_norm: bool = False,
    bias: bool = False,
    width: int = 32,
) -> Network:
    """Lindegaard's homogeneous network «2FC»: as `conv_1fc`, with a 2 × 2 convolution to 256 channels in between.

    The classifier is a 1 × 1 convolution, p = 256. The layer before it, ``backbone.fc``, sees 256 × 2 × 2 = 1,024
    features.

    Args:
        image_shape: (c, h, w).
        num_classes: k.
        activation: Activation at the representation; the others are ReLU.
        batch_norm: Normalise before each activation. The network is homogeneous without.
        bias: Whether all layers have biases. The network is homogeneous without.
        width: Channels of the first convolution; those after it scale with them.
    """
    p = 8 * width
    backbone = _convolutions(image_shape[0], "relu", batch_norm, bias, width)
    backbone.add_module("fc", nn.Conv2d(p, p, 2, bias=bias))
    if batch_norm:
        backbone.add_module("fc_norm", nn.BatchNorm2d(p))
    backbone.add_module("fc_activation", named_activation(activation))
    return Network(backbone, nn.Conv2d(p, num_classes, 1, bias=bias))


def _convolutions(channels: int, last: str, batch_norm: bool, bias: bool, width: int) -> nn.Sequential:
    layers: dict[str, nn.Module] = {"enlarge": Enlarge(32)}
    for number, activation in enumerate(["relu"] * 3 + [last]):
        outputs = width * 2**number
        layers[f"conv{number + 1}"] = nn.Conv2d(channels, outputs, 3, stride=2, padding=1, bias=bias)
        if batch_norm:
            layers[f"norm{number + 1}"] = nn.BatchNorm2d(outputs)
        layers[f"activation{number + 1}"] = named_activation(activation)
        channels = outputs
    return nn.Sequential(OrderedDict(layers))


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
        return Network(backbone, nn.Linear(width, num_classes, bias=bias))
    backbone.fc = nn.Sequential(nn.Linear(width, num_features), named_activation(activation))
    return Network(backbone, nn.Linear(num_features, num_classes, bias=bias))
