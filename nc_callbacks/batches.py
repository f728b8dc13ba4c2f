"""Ready-made functions from a batch to (inputs, targets), for `batch_fn=...`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nc_callbacks.probe import default_batch_fn

IGNORED = -100
"""The target of positions that do not count, as in torch's cross-entropy and transformers' losses."""


def causal_lm(batch: Mapping[str, Any]) -> tuple[Any, Tensor]:
    """Inputs and targets of a causal language model, whose position t is asked for the token at t + 1.

    The batch has ``labels`` beside ``input_ids``, as transformers' models and collators have them. They are shifted by
    one as the models' own loss shifts them; the last position has no target. Padding with −100 is left out.

    Raises:
        ValueError: The batch has no such labels.

    Example:
        >>> ids = torch.tensor([[5, 6, 7]])
        >>> causal_lm({"input_ids": ids, "labels": ids})[1]
        tensor([[   6,    7, -100]])
    """
    inputs, labels = default_batch_fn(batch)
    if not isinstance(labels, Tensor) or labels.ndim != 2:
        raise ValueError(f"causal_lm takes batches with labels of shape (n, t); got {_described(labels)}.")
    targets = torch.full_like(labels, IGNORED)
    targets[:, :-1] = labels[:, 1:]
    return inputs, targets


def last_token(batch: Mapping[str, Any], pad_token_id: int | None = None) -> tuple[Any, Tensor]:
    """Inputs and targets of a decoder that classifies a text at its last token that is no padding.

    Such a model (transformers' ``GPT2ForSequenceClassification`` and its like) gives its outputs at every position and
    returns those at one. The targets are −100 elsewhere.

    Args:
        batch: With ``input_ids`` (or ``inputs_embeds``), ``labels`` of shape (n,) and, for padded texts,
            ``attention_mask``.
        pad_token_id: The model's own, ``model.config.pad_token_id``: where it is given the last other token counts, as
            it does for these models, and the attention mask is not asked. Pass ``partial(last_token, pad_token_id=0)``.

    Raises:
        ValueError: The batch has no such labels or inputs.

    Example:
        >>> ids, mask = torch.tensor([[5, 6, 0], [7, 8, 9]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
        >>> last_token({"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([2, 3])})[1]
        tensor([[-100,    2, -100],
                [-100, -100,    3]])
    """
    inputs, labels = default_batch_fn(batch)
    tokens = batch.get("input_ids", batch.get("inputs_embeds"))
    if not isinstance(labels, Tensor) or labels.numel() != len(labels) or not isinstance(tokens, Tensor):
        raise ValueError(
            f"last_token takes batches with input_ids or inputs_embeds and labels of shape (n,); got "
            f"{_described(labels)} and the keys {sorted(map(str, batch))}."
        )
    counts = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    if pad_token_id is not None and "input_ids" in batch:
        counts = tokens != pad_token_id
    elif isinstance(mask := batch.get("attention_mask"), Tensor):
        counts = mask != 0
    places = torch.arange(tokens.shape[1], device=tokens.device)
    last = (places * counts).argmax(1, keepdim=True)
    targets = torch.full(tokens.shape[:2], IGNORED, dtype=torch.long, device=tokens.device)
    return inputs, targets.scatter(1, last, labels.reshape(-1, 1).long())


def _described(labels: Any) -> str:
    return f"labels of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
