"""Vision transformers of small images, as `nc_callbacks.experiments.models` has convolutional networks."""

from __future__ import annotations

from torch import nn

from nc_callbacks.experiments.models import Network, Shape


def vit(
    image_shape: Shape,
    num_classes: int,
    patch_size: int = 4,
    num_features: int = 128,
    depth: int = 6,
    heads: int = 4,
    bias: bool = False,
) -> Network:
    """torchvision's VisionTransformer, small: the representation is the class token after the last LayerNorm.

    Args:
        image_shape: (c, h, w), square.
        num_classes: k.
        patch_size: Pixels a side of a patch; it divides h.
        num_features: p, also of the tokens within; the dense layers of a block have twice as many units.
        depth: Blocks.
        heads: Attention heads of a block; they divide p.
        bias: Whether the classifier has a bias.

    Raises:
        ValueError: The images are not square, or patches do not divide them.

    Example:
        >>> import torch
        >>> vit((1, 8, 8), num_classes=10, depth=2)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    from torchvision.models import VisionTransformer

    channels, height, width = image_shape
    if height != width or height % patch_size:
        raise ValueError(
            f"Expected square images that patches of {patch_size} pixels a side divide, got {height} × {width}. Set "
            "patch_size to a divisor, or data.size where the images are a folder's."
        )
    backbone = VisionTransformer(height, patch_size, depth, heads, num_features, 2 * num_features)
    if channels != 3:
        backbone.conv_proj = nn.Conv2d(channels, num_features, patch_size, patch_size)
    backbone.heads = nn.Identity()
    return Network(backbone, nn.Linear(num_features, num_classes, bias=bias))
