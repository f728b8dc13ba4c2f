"""torchvision: every family of classifiers, and what it has besides."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torchvision import models
from torchvision.models import convnext, densenet, maxvit, mobilenetv3, resnet, video
from torchvision.models import swin_transformer as swin

from tests.zoo.setups import K, Row, Setup, Wrapped, averaging, pairs


def _narrow(model: Any, hidden: int = 32) -> Any:
    """VGG and AlexNet with few hidden units."""
    places = [i for i, module in enumerate(model.classifier) if isinstance(module, nn.Linear)]
    widths = [model.classifier[places[0]].in_features, hidden, hidden, K]
    for i, place in enumerate(places):
        model.classifier[place] = nn.Linear(widths[i], widths[i + 1])
    return model


def _swin(block: Any = None, merge: Any = None, **settings: Any) -> Any:
    kinds = {} if block is None else {"block": block, "downsample_layer": merge}
    return swin.SwinTransformer([2, 2], 16, [1, 1], [2, 4], [4, 4], num_classes=K, **kinds, **settings)


def _convnext() -> Any:
    blocks = [convnext.CNBlockConfig(16, 24, 1), convnext.CNBlockConfig(24, None, 1)]
    return models.ConvNeXt(blocks, num_classes=K)


def _vit() -> Any:
    return models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=K)


def _mobilenet_v3() -> Any:
    settings = [
        mobilenetv3.InvertedResidualConfig(16, 3, 16, 16, True, "RE", 2, 1, 1.0),
        mobilenetv3.InvertedResidualConfig(16, 3, 72, 24, False, "HS", 2, 1, 1.0),
    ]
    return models.MobileNetV3(settings, 64, num_classes=K)


def _video_resnet(maker: Any, stem: Any) -> Any:
    return video.resnet.VideoResNet(video.resnet.BasicBlock, [maker] * 4, [1, 1, 1, 1], stem, num_classes=K)


def _mvit() -> Any:
    block = partial(video.mvit.MSBlockConfig, kernel_q=[3, 3, 3], kernel_kv=[3, 3, 3], stride_kv=[1, 2, 2])
    blocks = [block(1, 16, 32, stride_q=[1, 1, 1]), block(2, 32, 32, stride_q=[1, 2, 2])]
    return video.MViT((32, 32), 4, blocks, False, False, False, False, num_classes=K)


def _image(size: int = 32) -> Callable[[], Any]:
    return partial(pairs, 3, size, size)


def _clip(size: int = 32, frames: int = 4) -> Callable[[], Any]:
    return partial(pairs, 3, frames, size, size)


def _setup(build: Callable[[], Any], head: str, data: Callable[[], Any], kind: Any = Wrapped) -> Setup:
    torch.manual_seed(0)
    return Setup(kind(averaging(build())), data(), f"model.{head}")


class Named(Wrapped):
    """A segmentation network, which returns a dict."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return nn.functional.cross_entropy(self(batch[0])["out"], batch[1][:, None, None].expand(-1, 32, 32))


CLASSIFIERS: list[tuple[str, Callable[[], Any], str, Callable[[], Any]]] = [
    ("AlexNet", lambda: _narrow(models.AlexNet(K)), "classifier.6", _image(64)),
    ("VGG", lambda: _narrow(models.vgg11_bn()), "classifier.6", _image()),
    ("ResNet", lambda: models.ResNet(resnet.BasicBlock, [1, 1, 1, 1], K), "fc", _image()),
    ("ResNeXt", lambda: models.ResNet(resnet.Bottleneck, [1, 1, 1, 1], K, groups=8, width_per_group=4), "fc", _image()),
    ("Wide ResNet", lambda: models.ResNet(resnet.Bottleneck, [1, 1, 1, 1], K, width_per_group=96), "fc", _image()),
    ("DenseNet", lambda: densenet.DenseNet(8, (2, 2, 2, 2), 16, num_classes=K), "classifier", _image()),
    ("Inception v3", lambda: models.Inception3(K, aux_logits=False, init_weights=False), "fc", _image(96)),
    ("GoogLeNet", lambda: models.GoogLeNet(K, aux_logits=False, init_weights=False), "fc", _image(64)),
    ("MobileNet v2", lambda: models.MobileNetV2(K, width_mult=0.25), "classifier.1", _image()),
    ("MobileNet v3", _mobilenet_v3, "classifier.3", _image()),
    ("MNASNet", lambda: models.MNASNet(0.35, K), "classifier.1", _image()),
    ("ShuffleNet v2", lambda: models.ShuffleNetV2([1, 1, 1], [24, 24, 48, 96, 128], K), "fc", _image()),
    ("EfficientNet", lambda: models.efficientnet_b0(num_classes=K), "classifier.1", _image()),
    ("RegNet", lambda: models.regnet_x_400mf(num_classes=K), "fc", _image()),
    ("ConvNeXt", _convnext, "classifier.2", _image()),
    ("ViT", _vit, "heads.head", _image()),
    ("Swin", _swin, "head", _image()),
    ("Swin v2", lambda: _swin(swin.SwinTransformerBlockV2, swin.PatchMergingV2), "head", _image()),
    (
        "MaxViT",
        lambda: maxvit.MaxVit((32, 32), 8, 2, [8, 16], [1, 1], 8, 0.0, num_classes=K),
        "classifier.5",
        _image(),
    ),
    ("R3D", lambda: _video_resnet(video.resnet.Conv3DSimple, video.resnet.BasicStem), "fc", _clip()),
    ("R(2+1)D", lambda: _video_resnet(video.resnet.Conv2Plus1D, video.resnet.R2Plus1dStem), "fc", _clip()),
    ("MViT", _mvit, "head.1", _clip()),
    (
        "Swin 3D",
        lambda: video.SwinTransformer3d([2, 4, 4], 16, [1, 1], [2, 4], [2, 2, 2], num_classes=K),
        "head",
        _clip(),
    ),
]

ROWS = [
    Row("torchvision", name, partial(_setup, build, head, data), "torchvision")
    for name, build, head, data in CLASSIFIERS
]
