"""Networks: shapes, options, no bias in the classifier by default."""

import pytest
import torch
from torch import nn

from nc_callbacks.experiments import models

BUILDERS = {"cnn": models.cnn, "mlp": models.mlp, "resnet18": models.resnet18}


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize("name", BUILDERS)
def test_shapes_and_bias(name, shape):
    network = BUILDERS[name](shape, num_classes=7).eval()
    images = torch.rand(2, *shape)
    assert network.backbone(images).shape == (2, 512)
    assert network(images).shape == (2, 7)
    assert network.classifier.bias is None
    assert BUILDERS[name](shape, num_classes=7, bias=True).classifier.bias is not None


@pytest.mark.parametrize("name", BUILDERS)
def test_activation_at_the_representation(name):
    network = BUILDERS[name]((1, 8, 8), num_classes=3, activation="softsign", num_features=16)
    last = list(network.backbone.modules())[-1]
    assert isinstance(last, nn.Softsign)
    assert network.classifier.in_features == 16


@pytest.mark.parametrize("name", ["cnn", "mlp"])
def test_batch_norm_is_an_option(name):
    def norms(**options):
        network = BUILDERS[name]((1, 8, 8), num_classes=3, **options)
        return sum(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in network.modules())

    assert norms() == 0
    # One before each activation.
    assert norms(batch_norm=True) == {"cnn": 3, "mlp": 2}[name]


def test_resnet_keeps_the_resolution_of_small_images():
    backbone = models.resnet18((3, 32, 32), num_classes=10).backbone
    assert backbone.maxpool(backbone.conv1(torch.zeros(1, 3, 32, 32))).shape == (1, 64, 32, 32)


def test_unknown_activation():
    with pytest.raises(ValueError, match=r"activation must be the name of one in torch.nn \(.*Tanh.*\), got 'sine'"):
        models.cnn((1, 8, 8), 10, activation="sine")
