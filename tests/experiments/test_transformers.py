"""The small vision transformer: shapes, what its head sees, images that patches do not divide."""

import pytest
import torch

from nc_callbacks.experiments.transformers import vit
from nc_callbacks.probe.depth import blocks


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
def test_shapes_and_bias(shape):
    network = vit(shape, num_classes=7, depth=2).eval()
    images = torch.rand(2, *shape)
    assert network.backbone(images).shape == (2, 128)
    assert network(images).shape == (2, 7)
    assert network.classifier.bias is None
    assert vit(shape, num_classes=7, depth=2, bias=True).classifier.bias is not None


def test_blocks_are_its_encoder_layers():
    names = blocks(vit((1, 8, 8), num_classes=3, depth=3))
    assert names == [f"backbone.encoder.layers.encoder_layer_{i}" for i in range(3)]


@pytest.mark.parametrize("shape", [(1, 10, 10), (1, 8, 12)])
def test_images_that_patches_do_not_divide(shape):
    with pytest.raises(ValueError, match="Expected square images that patches of 4 pixels a side divide, got"):
        vit(shape, num_classes=3)
