"""Layers by patterns: the blocks of the models that people have."""

import pytest
import torch
import torchvision
from torch import nn

from nc_callbacks.probe.depth import blocks, expanded


@pytest.mark.parametrize(
    ("name", "count", "first"),
    [
        ("resnet18", 8, "layer1.0"),
        ("resnet50", 16, "layer1.0"),
        ("densenet121", 4, "features.denseblock1"),
        ("vit_b_32", 12, "encoder.layers.encoder_layer_0"),
        ("swin_t", 12, "features.1.0"),
        ("convnext_tiny", 18, "features.1.0"),
        ("mobilenet_v2", 17, "features.1"),
        ("efficientnet_b0", 16, "features.1.0"),
        ("vgg11", 8, "features.0"),
        ("squeezenet1_0", 8, "features.3"),
    ],
)
def test_blocks_of_torchvision(name, count, first):
    with torch.device("meta"):
        found = blocks(getattr(torchvision.models, name)(weights=None))
    assert (len(found), found[0]) == (count, first)


def test_blocks_of_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16, vocab_size=20
    )
    found = blocks(transformers.BertForSequenceClassification(config))
    assert found == [f"bert.encoder.layer.{place}" for place in range(3)]


def test_layers_of_an_mlp():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    assert blocks(net) == ["0", "2", "4"]
    assert expanded(net, "all") == ("0", "2", "4")


def test_a_star_stands_for_one_part_of_a_name():
    net = nn.ModuleDict({"layer": nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.Tanh()), "head": nn.Linear(2, 2)})
    assert expanded(net, ["layer.*"]) == ("layer.0", "layer.1")
    assert expanded(net, ["*.*.*", "head", "layer.1"]) == ("layer.0.0", "head", "layer.1")
    with pytest.raises(ValueError, match=r"layers='stage\*' finds nothing in ModuleDict\. Name the layers"):
        expanded(net, ["stage*"])


def test_in_a_list_blocks_is_the_name_of_a_module():
    """As that of timm's vision transformers."""
    net = nn.ModuleDict({"blocks": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "all": nn.Linear(2, 2)})
    assert expanded(net, ["blocks", "all"]) == ("blocks", "all")
    assert expanded(net, "blocks") == ("blocks.0", "blocks.1")
