"""Whether a loss takes the outputs as they are or their softmax."""

from __future__ import annotations

from collections import deque
from typing import Any

from torch import Tensor, nn

from nc_callbacks.statistics import Outputs

_SOFTMAX = ("LogSoftmaxBackward", "SoftmaxBackward", "LogsumexpBackward")
_RAW = ("MseLossBackward", "SmoothL1LossBackward", "HuberLossBackward", "L1LossBackward", "SubBackward", "PowBackward")
_OTHER = (
    "BinaryCrossEntropy",
    "Sigmoid",
    "LogSigmoid",
    "SoftMargin",
    "MultiMargin",
    "MultilabelMargin",
    "CosineEmbedding",
)
"""Losses that take neither."""

_LAYERS = ("AddmmBackward", "MmBackward", "BmmBackward", "LinearBackward", "ConvolutionBackward", "CompiledFunction")
"""Beyond these lies the model, which may have a softmax of its own."""

_MOST_OPERATIONS = 500


def outputs_of_loss(loss: Tensor) -> Outputs | None:
    """Kind of outputs by the operations between them and the loss; None where they do not tell.

    Example:
        >>> import torch
        >>> f, y = torch.nn.Linear(2, 3)(torch.zeros(4, 2)), torch.zeros(4, dtype=torch.long)
        >>> outputs_of_loss(torch.nn.functional.cross_entropy(f, y)), outputs_of_loss((f - 1).square().mean())
        ('softmax', 'raw')
    """
    queue, seen, raw, other = deque([loss.grad_fn]), set[Any](), False, False
    while queue and len(seen) < _MOST_OPERATIONS:
        operation = queue.popleft()
        if operation is None or operation in seen:
            continue
        seen.add(operation)
        name = operation.name()
        if name.startswith(_SOFTMAX):
            return "softmax"
        raw, other = raw or name.startswith(_RAW), other or name.startswith(_OTHER)
        if not name.startswith(_LAYERS):
            queue.extend(following for following, _ in operation.next_functions)
    return "raw" if raw and not other else None


def outputs_of_modules(model: nn.Module) -> Outputs | None:
    """Kind of outputs by the loss modules of a model; None where there is none, or several that differ."""
    kinds: set[Outputs] = set()
    for module in model.modules():
        if isinstance(module, nn.NLLLoss | nn.CrossEntropyLoss):
            kinds.add("softmax")
        elif isinstance(module, nn.MSELoss):
            kinds.add("raw")
    return kinds.pop() if len(kinds) == 1 else None
