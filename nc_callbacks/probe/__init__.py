"""Finding a model's classifier, capturing what goes into it, and running it without leaving a trace."""

from nc_callbacks.probe.batches import class_indices, default_batch_fn
from nc_callbacks.probe.classifier import candidates, find_head, named_head, named_module, named_modules
from nc_callbacks.probe.tap import Batch, Pool, Tap
from nc_callbacks.probe.undisturbed import undisturbed

__all__ = [
    "Batch",
    "Pool",
    "Tap",
    "candidates",
    "class_indices",
    "default_batch_fn",
    "find_head",
    "named_head",
    "named_module",
    "named_modules",
    "undisturbed",
]
