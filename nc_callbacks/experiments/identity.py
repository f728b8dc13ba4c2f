"""Which data a run was trained with: counts, class names and a checksum in the run's folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import TensorDataset

from nc_callbacks.files import write_whole

DATA_FILE = "data.json"
"""Name of the file in a run's folder."""


def data_identity(data: Any) -> dict[str, Any]:
    """Facts of a data module after `setup`, as `write_data_file` writes them.

    ``checksum`` is the SHA-256 of shapes, pixels and labels of the training and the validation images in their order;
    null for what streams from disk.

    Args:
        data: `ImageData` or `ImageFolderData`.
    """
    sets = (data.train_set, data.val_set)
    in_memory = all(isinstance(part, TensorDataset) for part in sets)
    return {
        "name": data.image_set,
        "train": len(data.train_set),
        "val": len(data.val_set),
        "image_shape": list(data.image_shape),
        "classes": getattr(data, "class_names", None),
        "class_counts": data.class_counts.tolist(),
        "checksum": _checksum([tensor for part in sets for tensor in part.tensors]) if in_memory else None,
    }


def write_data_file(data: Any, folder: str | Path) -> None:
    """Write ``data.json``.

    Args:
        data: `ImageData` or `ImageFolderData`, after `setup`.
        folder: The run's folder.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_whole(Path(folder, DATA_FILE), json.dumps(data_identity(data), indent=2, ensure_ascii=False) + "\n")


def _checksum(tensors: list[Tensor]) -> str:
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
        sha.update(tensor.contiguous().numpy().data)
    return f"sha256:{sha.hexdigest()}"
