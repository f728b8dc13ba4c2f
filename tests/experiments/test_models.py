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


@pytest.mark.parametrize("size", [8, 28])
def test_convolutions_of_each_stage(size):
    network = models.cnn((3, size, size), 10, convolutions=3, batch_norm=True)
    convolutions = [layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convolutions] == [
        (3, 32),
        *[(32, 32)] * 2,
        (32, 64),
        *[(64, 64)] * 2,
    ]
    assert sum(isinstance(layer, torch.nn.BatchNorm2d) for layer in network.modules()) == 6
    assert network(torch.zeros(2, 3, size, size)).shape == (2, 10)


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
    with pytest.raises(
        ValueError, match=r"activation must be 'erf' or the name of one in torch.nn \(.*Tanh.*\), got 'sine'"
    ):
        models.cnn((1, 8, 8), 10, activation="sine")


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_homogeneous_networks(shape):
    one, two = models.conv_1fc(shape, num_classes=10).eval(), models.conv_2fc(shape, num_classes=10).eval()
    images = torch.rand(2, *shape)
    assert one.backbone(images).shape == (2, 256, 2, 2)
    assert two.backbone(images).shape == (2, 256, 1, 1)
    for network in (one, two):
        assert network(images).shape == (2, 10)
        # Homogeneous: twice the weights of L layers scale the output by 2^L.
        before = network(images)
        layers = list(network.parameters())
        assert all(parameter.ndim == 4 for parameter in layers)
        with torch.no_grad():
            for parameter in layers:
                parameter.mul_(2)
        torch.testing.assert_close(network(images), before * 2 ** len(layers), rtol=1e-4, atol=1e-5)
    assert [module.out_channels for module in two.backbone if isinstance(module, nn.Conv2d)] == [32, 64, 128, 256, 256]


def test_homogeneous_networks_options():
    network = models.conv_2fc((1, 8, 8), 3, batch_norm=True, bias=True, activation="erf")
    assert sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) == 5
    assert all(module.bias is not None for module in network.modules() if isinstance(module, nn.Conv2d))
    assert isinstance(list(network.backbone)[-1], models.Erf)


def test_width_of_homogeneous_networks():
    one, two = (build((1, 8, 8), 3, width=4) for build in (models.conv_1fc, models.conv_2fc))
    assert [module.out_channels for module in one.modules() if isinstance(module, nn.Conv2d)] == [4, 8, 16, 32, 3]
    assert [module.out_channels for module in two.modules() if isinstance(module, nn.Conv2d)] == [4, 8, 16, 32, 32, 3]
    assert one(torch.rand(2, 1, 8, 8)).shape == two(torch.rand(2, 1, 8, 8)).shape == (2, 3)


def test_enlarge():
    image = torch.arange(4.0).view(1, 1, 2, 2)
    enlarged = models.Enlarge(5)(image)[0, 0]
    assert enlarged[:4, :4].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    assert enlarged[4].tolist() == [0] * 5
    with pytest.raises(ValueError, match="at most 5 × 5, got 6 × 6"):
        models.Enlarge(5)(torch.zeros(1, 1, 6, 6))


@pytest.mark.parametrize("name", ["cnn", "mlp"])
def test_keras_initialisation(name):
    torch.manual_seed(0)
    network = BUILDERS[name]((1, 28, 28), num_classes=10, init="keras", bias=True)
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(layers) == {"cnn": 4, "mlp": 3}[name]
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            fans = (layer.in_channels + layer.out_channels) * 3 * 3
        else:
            fans = layer.in_features + layer.out_features
        bound = (6 / fans) ** 0.5
        weight = layer.weight.detach().double()
        assert bound * 0.97 < weight.abs().max() <= bound * (1 + 1e-6)
        # Uniform on ±bound: variance bound²/3, with a standard error of its fourth moment.
        assert weight.var().item() == pytest.approx(bound**2 / 3, rel=4 * 0.9 / weight.numel() ** 0.5)
        assert layer.bias.abs().max() == 0


def test_unknown_initialisation():
    with pytest.raises(ValueError, match="init must be 'torch' or 'keras', got 'he'"):
        models.mlp((1, 8, 8), 10, init="he")


@pytest.mark.parametrize(("name", "places"), [("cnn", [3136, 512]), ("mlp", [512, 512])])
def test_dropout_before_dense_layers_in_training_alone(name, places):
    torch.manual_seed(0)
    network = BUILDERS[name]((1, 28, 28), num_classes=10, dropout=0.25)
    seen = []
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    network(torch.rand(64, 1, 28, 28))
    assert [before.shape[1] for before, _ in seen] == places
    for before, after in seen:
        kept = after != 0
        torch.testing.assert_close(after[kept], before[kept] / 0.75)
        dropped = ((before != 0) & ~kept).sum() / (before != 0).sum()
        assert dropped.item() == pytest.approx(0.25, abs=0.02)
    seen.clear()
    network.eval()(torch.rand(2, 1, 28, 28))
    assert all(torch.equal(before, after) for before, after in seen)
    plain = BUILDERS[name]((1, 28, 28), num_classes=10)
    assert [p.shape for p in plain.parameters()] == [p.shape for p in network.parameters()]
