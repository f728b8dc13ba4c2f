"""transformers: classifiers of texts, images and sounds, of tokens, and language models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nc_callbacks import batches
from tests.zoo.setups import HuggingFace, K, Row, Setup, around_means, names, tokens

NARROW = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 40,
    "max_position_embeddings": 16, "num_labels": K, "pad_token_id": 0,
}  # fmt: skip
VOCABULARY = 12
"""Of causal models, whose classes are tokens."""

_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 16, "vocab_size": 40, "num_labels": K}
_LLAMA = NARROW | {"num_key_value_heads": 1}
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 2, "vocab_size": 40, "num_labels": K}
_BART = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 40, "num_labels": K, "max_position_embeddings": 16,
    "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 1,
}  # fmt: skip
_IMAGE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "image_size": 32,
    "patch_size": 8, "num_labels": K, "initializer_range": 0.2,
}  # fmt: skip


def _model(name: str, settings: Mapping[str, Any], config: str = "") -> HuggingFace:
    import transformers

    kind = getattr(transformers, name)
    torch.manual_seed(0)
    return HuggingFace(kind(kind.config_class(**settings)), rate=0.1)


def _texts(name: str, settings: Mapping[str, Any], head: str) -> Setup:
    return Setup(_model(name, settings), names(**tokens()), f"model.{head}")


def _words(name: str, settings: Mapping[str, Any], head: str) -> Setup:
    data = names(**tokens(per_token=True))
    return Setup(_model(name, settings), data, f"model.{head}", positions=lambda x: x.flatten(0, 1))


def _last_token(name: str, settings: Mapping[str, Any], head: str) -> Setup:
    def targets(batch: Any) -> Tensor:
        wanted = torch.full(batch["input_ids"].shape, -100)
        for row, (mask, label) in enumerate(zip(batch["attention_mask"], batch["labels"], strict=True)):
            wanted[row, int(mask.nonzero().max())] = label
        return wanted

    data = names(**tokens())
    return Setup(
        _model(name, settings), data, f"model.{head}", {"batch_fn": batches.last_token},
        targets=targets, positions=lambda x: x.flatten(0, 1),
    )  # fmt: skip


def _causal(name: str, settings: Mapping[str, Any], head: str) -> Setup:
    def targets(batch: Any) -> Tensor:
        wanted = batch["labels"].roll(-1, 1)
        wanted[:, -1] = -100
        return wanted

    data = tokens(vocabulary=VOCABULARY)
    data["labels"] = data["input_ids"].masked_fill(data["attention_mask"] == 0, -100)
    settings = {**settings, "vocab_size": VOCABULARY}
    return Setup(
        _model(name, settings), names(**data), f"model.{head}", {"batch_fn": batches.causal_lm},
        targets=targets, positions=lambda x: x.flatten(0, 1),
    )  # fmt: skip


def _end_of_text(name: str, settings: Mapping[str, Any], head: str) -> Setup:
    """An encoder and decoder that classifies at the last end-of-text token."""
    data = tokens()
    data["input_ids"] = data["input_ids"].clamp_min(2)
    data["input_ids"][:, -1] = 1
    data["attention_mask"] = torch.ones_like(data["input_ids"])
    return Setup(_model(name, settings), names(**data), f"model.{head}")


def _pictures(name: str, settings: Mapping[str, Any], head: str) -> Setup:
    x, y = around_means(3, 32, 32)
    return Setup(_model(name, settings), names(pixel_values=x, labels=y), f"model.{head}")


def _sounds(name: str, settings: Mapping[str, Any], head: str) -> Setup:
    x, y = around_means(1200)
    return Setup(_model(name, settings), names(input_values=x, labels=y), f"model.{head}")


def _masked(name: str, settings: Mapping[str, Any], head: str) -> Setup:
    data = tokens(vocabulary=VOCABULARY)
    data["labels"] = data["input_ids"].masked_fill(data["attention_mask"] == 0, -100)
    data["input_ids"] = torch.where(torch.arange(7) % 2 == 0, 1, data["input_ids"])
    setup = Setup(_model(name, {**settings, "vocab_size": VOCABULARY}), names(**data), f"model.{head}")
    setup.positions = lambda x: x.flatten(0, 1)
    return setup


def _choices(name: str, settings: Mapping[str, Any], head: str) -> Setup:
    data = tokens()
    data = {key: torch.stack([values] * K, 1) if key != "labels" else values for key, values in data.items()}
    return Setup(_model(name, settings), names(**data), f"model.{head}")


def _spans(name: str, settings: Mapping[str, Any], head: str) -> Setup:
    data = tokens()
    y = data.pop("labels")
    return Setup(_model(name, settings), names(**data, start_positions=y % 3, end_positions=y % 3), f"model.{head}")


MODELS: list[tuple[Callable[..., Setup], str, Mapping[str, Any], str]] = [
    (_texts, "BertForSequenceClassification", NARROW, "classifier"),
    (_texts, "RobertaForSequenceClassification", NARROW | {"max_position_embeddings": 24}, "classifier.out_proj"),
    (_texts, "ElectraForSequenceClassification", NARROW | {"embedding_size": 32}, "classifier.out_proj"),
    (_texts, "AlbertForSequenceClassification", NARROW | {"embedding_size": 16}, "classifier"),
    (
        _texts,
        "DistilBertForSequenceClassification",
        {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 48, "vocab_size": 40, "num_labels": K},
        "classifier",
    ),
    (_texts, "DebertaV2ForSequenceClassification", NARROW, "classifier"),
    (
        _texts,
        "ModernBertForSequenceClassification",
        NARROW | {"cls_token_id": 1, "sep_token_id": 1, "bos_token_id": 1, "eos_token_id": 1},
        "classifier",
    ),
    (_words, "BertForTokenClassification", NARROW, "classifier"),
    (
        _words,
        "DistilBertForTokenClassification",
        {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 48, "vocab_size": 40, "num_labels": K},
        "classifier",
    ),
    (_last_token, "GPT2ForSequenceClassification", _GPT2 | {"pad_token_id": 0}, "score"),
    (_last_token, "LlamaForSequenceClassification", _LLAMA, "score"),
    (_last_token, "MistralForSequenceClassification", _LLAMA, "score"),
    (_last_token, "Qwen2ForSequenceClassification", _LLAMA, "score"),
    (_words, "GPT2ForTokenClassification", _GPT2, "classifier"),
    (_causal, "GPT2LMHeadModel", _GPT2, "lm_head"),
    (_causal, "LlamaForCausalLM", _LLAMA, "lm_head"),
    (_causal, "OPTForCausalLM", NARROW | {"ffn_dim": 48, "word_embed_proj_dim": 32}, "lm_head"),
    (_masked, "BertForMaskedLM", NARROW, "cls.predictions.decoder"),
    (_end_of_text, "BartForSequenceClassification", _BART, "classification_head.out_proj"),
    (
        _end_of_text,
        "T5ForSequenceClassification",
        _T5 | {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0},
        "classification_head.out_proj",
    ),
    (_pictures, "ViTForImageClassification", _IMAGE, "classifier"),
    (_pictures, "DeiTForImageClassificationWithTeacher", _IMAGE, "cls_classifier"),
    (_pictures, "BeitForImageClassification", _IMAGE, "classifier"),
    (_pictures, "Dinov2ForImageClassification", _IMAGE, "classifier"),
    (
        _pictures,
        "SwinForImageClassification",
        {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "image_size": 32, "window_size": 2, "num_labels": K},
        "classifier",
    ),
    (
        _pictures,
        "ConvNextForImageClassification",
        {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "num_labels": K},
        "classifier",
    ),
    (
        _pictures,
        "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic", "num_labels": K},
        "classifier.1",
    ),
    (
        _sounds,
        "Wav2Vec2ForSequenceClassification",
        {k: v for k, v in NARROW.items() if k != "vocab_size"}
        | {
            "conv_dim": [16, 16],
            "conv_kernel": [10, 8],
            "conv_stride": [5, 4],
            "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 2,
            "classifier_proj_size": 16,
        },
        "classifier",
    ),
    (_choices, "BertForMultipleChoice", NARROW, "classifier"),
    (_spans, "BertForQuestionAnswering", {**NARROW, "num_labels": 2}, "qa_outputs"),
]

REMARKS = {_last_token: "batch_fn=nc_callbacks.batches.last_token", _causal: "batch_fn=nc_callbacks.batches.causal_lm"}

REFUSED = {
    "DeiTForImageClassificationWithTeacher": ("Several modules can be the classifier", "head=one of the two"),
    "BertForMultipleChoice": ("No classifier found", "it has one output a choice, and no classes: head="),
    "BertForQuestionAnswering": ("start_positions", "batch_fn=one class a row; places in a text are no classes"),
}
"""What is said, and the way out."""


def _row(make: Callable[..., Setup], name: str, config: Mapping[str, Any], head: str) -> Row:
    refused, remark = REFUSED.get(name, ("", REMARKS.get(make, "")))
    return Row("transformers", name, partial(make, name, config, head), "transformers", refused, remark)


ROWS = [_row(*model) for model in MODELS]
