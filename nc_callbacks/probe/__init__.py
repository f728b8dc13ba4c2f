"""Finding a model's classifier, capturing what goes into it, and running it without leaving a trace."""

from nc_callbacks.probe.batches import by_name, call_model, default_batch_fn, explained
from nc_callbacks.probe.contract import check_head, find_head
from nc_callbacks.probe.head import Head
from nc_callbacks.probe.names import candidates, check_names, named_head, named_module, named_modules
from nc_callbacks.probe.tap import Batch, Pool, Tap
from nc_callbacks.probe.targets import class_indices
from nc_callbacks.probe.undisturbed import undisturbed

__all__ = [
    "Batch",
    "Head",
    "Pool",
    "Tap",
    "by_name",
    "call_model",
    "candidates",
    "check_head",
    "check_names",
    "class_indices",
    "default_batch_fn",
    "explained",
    "find_head",
    "named_head",
    "named_module",
    "named_modules",
    "undisturbed",
]
