"""What a data set is called in titles."""

from __future__ import annotations

from typing import Any

from nc_callbacks.data.loader import single_loaders

_SAY_NOTHING = ("builtins", "torch", "datasets", "numpy")
"""Packages whose classes hold any data: `TensorDataset` is no name."""


def name_of_data(datamodule: Any, loader: Any) -> str:
    """The data module's `name`, or the builder's or the class of the set that the first training loader reads.

    Args:
        datamodule: A trainer's, or None.
        loader: Its training loader or loaders, or None.

    Returns:
        Empty where none of them tells.

    Example:
        >>> from torch.utils.data import DataLoader, Dataset, Subset
        >>> class Leaves(Dataset): ...
        >>> name_of_data(None, DataLoader(Subset(Leaves(), [0])))
        'Leaves'
    """
    if isinstance(name := getattr(datamodule, "name", None), str):
        return name
    read = getattr(single_loaders(loader)[0], "dataset", loader)
    while hasattr(read, "dataset"):
        read = read.dataset
    if isinstance(builder := getattr(read, "builder_name", None), str):
        return builder
    return "" if type(read).__module__.split(".")[0] in _SAY_NOTHING or read is None else type(read).__name__
