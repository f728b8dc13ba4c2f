"""Finding a model's classifier by its name or by what it does."""

from nc_callbacks.probe.contract import check_head, find_head
from nc_callbacks.probe.names import (
    candidates,
    classifier_weight,
    named_head,
    named_module,
    named_modules,
    unsharded,
)

__all__ = [
    "candidates",
    "check_head",
    "classifier_weight",
    "find_head",
    "named_head",
    "named_module",
    "named_modules",
    "unsharded",
]
