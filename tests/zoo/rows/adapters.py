"""peft: adapters on the body, on the classifier, and classifiers that are trained whole."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from tests.zoo.rows.text import NARROW, _model
from tests.zoo.setups import K, Row, Setup, Wrapped, names, pairs, tokens


class Net(nn.Module):
    """A body and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 16), nn.Tanh())
        self.classifier = nn.Linear(16, K)

    def forward(self, x: Any) -> Any:
        return self.classifier(self.body(x))


def _plain(head: Any) -> tuple[Any, Any]:
    return head.weight, head.bias


def _effective(head: Any) -> tuple[Any, Any]:
    """W and b of what an adapter makes of a layer, from what it says it adds."""
    base = head.get_base_layer()
    return base.weight + head.get_delta_weight("default"), base.bias


def _dora(head: Any) -> tuple[Any, Any]:
    """Rows of the adapted weight, of the lengths that are trained."""
    weight, bias = _effective(head)
    lengths = head.lora_magnitude_vector["default"].weight
    return lengths[:, None] * nn.functional.normalize(weight), bias


def _ia3(head: Any) -> tuple[Any, Any]:
    """Rows of the weight times the factors that are trained."""
    base, factors = head.get_base_layer(), head.ia3_l["default"]
    return base.weight * factors, base.bias * factors[:, 0]


def _net(config: Callable[[Any], Any], head: str, weight: Any) -> Setup:
    import peft

    torch.manual_seed(0)
    model = peft.get_peft_model(Net(), config(peft))
    for name, parameter in model.named_parameters():
        # Adapters add nothing at the start; these do.
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return Setup(Wrapped(model, rate=0.1), pairs(8), f"model.base_model.model.{head}", weight=weight)


def _bert(config: Callable[[Any], Any]) -> Setup:
    import peft

    module = _model("BertForSequenceClassification", NARROW)
    module.model = peft.get_peft_model(module.model, config(peft))
    return Setup(module, names(**tokens()), "model.base_model.model.classifier.modules_to_save.default")


def _lora(*targets: str, **more: Any) -> Callable[[Any], Any]:
    return lambda peft: peft.LoraConfig(r=2, target_modules=list(targets), **more)


BODY = ("body.0", "body.2")

NETS: list[tuple[str, Callable[[Any], Any], str, Any]] = [
    ("LoRA on the body", _lora(*BODY), "classifier", _plain),
    ("LoRA on the classifier", _lora("classifier"), "classifier", _effective),
    ("LoRA on both", _lora(*BODY, "classifier", lora_dropout=0.1), "classifier", _effective),
    ("rank-stabilised LoRA on both", _lora(*BODY, "classifier", use_rslora=True), "classifier", _effective),
    ("modules_to_save", _lora(*BODY, modules_to_save=["classifier"]), "classifier.modules_to_save.default", _plain),
    ("DoRA on the classifier", _lora("classifier", use_dora=True), "classifier", _dora),
    ("LoHa on both", lambda peft: peft.LoHaConfig(r=2, target_modules=[*BODY, "classifier"]), "classifier", _effective),
    (
        "IA³ on the classifier",
        lambda peft: peft.IA3Config(target_modules=["classifier"], feedforward_modules=[]),
        "classifier",
        _ia3,
    ),
]

ROWS = [
    *(Row("peft", name, partial(_net, config, head, weight), "peft") for name, config, head, weight in NETS),
    Row("peft", "BERT, LoRA for SEQ_CLS", partial(_bert, _lora("query", "value", task_type="SEQ_CLS")), "peft"),
]
