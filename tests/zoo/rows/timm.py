"""timm: classifiers of different families, as small as they come."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from tests.zoo.setups import K, Row, Setup, Wrapped, averaging, pairs

CLASSIFIERS: list[tuple[str, str, int, dict[str, Any]]] = [
    ("resnet10t", "fc", 32, {}),
    ("vit_tiny_patch16_224", "head", 32, {"img_size": 32, "depth": 2}),
    ("beit_base_patch16_224", "head", 32, {"img_size": 32, "depth": 1, "embed_dim": 48, "num_heads": 2}),
    ("eva02_tiny_patch14_224", "head", 28, {"img_size": 28, "depth": 2}),
    ("cait_xxs24_224", "head", 32, {"img_size": 32, "depth": 2}),
    ("xcit_nano_12_p16_224", "head", 32, {"img_size": 32, "depth": 2}),
    (
        "swin_tiny_patch4_window7_224",
        "head.fc",
        32,
        {"img_size": 32, "window_size": 2, "depths": (1, 1), "embed_dim": 24, "num_heads": (2, 4)},
    ),
    ("convnext_atto", "head.fc", 32, {"depths": (1, 1, 1, 1)}),
    ("efficientnet_lite0", "classifier", 32, {}),
    ("mobilenetv3_small_050", "classifier", 32, {}),
    ("mobilenetv4_conv_small_035", "classifier", 32, {}),
    ("mixer_s32_224", "head", 32, {"img_size": 32}),
    ("poolformerv2_s12", "head.fc", 32, {}),
    ("edgenext_xx_small", "head.fc", 32, {}),
    ("mobilevit_xxs", "head.fc", 64, {}),
    ("repvgg_a0", "head.fc", 32, {}),
    ("regnetx_002", "head.fc", 32, {}),
    ("densenet121", "classifier", 32, {"growth_rate": 8, "block_config": (2, 2, 2, 2)}),
    ("deit_tiny_distilled_patch16_224", "head", 32, {"img_size": 32, "depth": 2}),
    ("ghostnet_050", "classifier", 32, {}),
    ("lcnet_035", "classifier", 32, {}),
    ("starnet_s1", "head", 32, {"depths": (1, 1, 1, 1)}),
]


def _setup(name: str, head: str, size: int, settings: dict[str, Any]) -> Setup:
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=K, **settings)
    return Setup(Wrapped(averaging(model)), pairs(3, size, size), f"model.{head}")


REFUSED = {
    "deit_tiny_distilled_patch16_224": ("one of 'model.head', 'model.head_dist'", "head=one of the two"),
}
"""What is said, and the way out."""

ROWS = [
    Row("timm", name, partial(_setup, name, head, size, settings), "timm", *REFUSED.get(name, ("", "")))
    for name, head, size, settings in CLASSIFIERS
]
