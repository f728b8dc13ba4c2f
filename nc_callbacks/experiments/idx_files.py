"""IDX files, the format of MNIST and of Fashion-MNIST, whose files have the same names."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

Images = tuple[Tensor, Tensor]
"""Images (n, c, h, w) as uint8 or as floats in [0, 1], and labels (n,)."""

IDX_FILES = {
    True: ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    False: ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
"""The four files of MNIST and Fashion-MNIST, by whether they are the training set."""

TORCHVISION_NAMES = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
"""Classes of torchvision.datasets that download them."""

COUNTS = {
    "mnist": (
        (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
        (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
    ),
    "fashion_mnist": ((6000,) * 10, (1000,) * 10),
}
"""Samples of each class of the training and of the test set."""


def read_idx(path: Path) -> Tensor:
    """The array of bytes in an IDX .gz file (the format of MNIST).

    Raises:
        ValueError: The file is no IDX file of bytes, or is cut short.
    """
    with gzip.open(path) as file:
        content = file.read()
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is no IDX file of unsigned bytes.")
    header = 4 + 4 * content[3]
    shape = np.frombuffer(content[4:header], dtype=">i4").tolist()
    values = np.frombuffer(content[header:], dtype=np.uint8)
    if values.size != np.prod(shape):
        raise ValueError(f"{path} holds {values.size} values where its header says {shape}.")
    return torch.from_numpy(values.reshape(shape).copy())


def mnist_like(name: str) -> Callable[[Path, bool, bool], Images]:
    """A function that reads ``mnist`` or ``fashion_mnist`` from (root, train, download).

    The IDX .gz files lie in ``root/NAME`` or in the root itself; otherwise torchvision reads or downloads the set.
    Its `ValueError` says that the files hold the other set.
    """

    def load(root: Path, train: bool, download: bool) -> Images:
        from torchvision import datasets

        for folder in (root / name, root):
            paths = [folder / file for file in IDX_FILES[train]]
            if all(path.is_file() for path in paths):
                images, labels = map(read_idx, paths)
                _refuse_another_set(name, folder, labels)
                return images.unsqueeze(1), labels
        loaded = getattr(datasets, TORCHVISION_NAMES[name])(root, train=train, download=download)
        return loaded.data.unsqueeze(1), loaded.targets

    return load


def _refuse_another_set(name: str, folder: Path, labels: Tensor) -> None:
    counts = tuple(torch.bincount(labels.long(), minlength=10).tolist())
    for other, known in COUNTS.items():
        if other != name and counts in known:
            raise ValueError(
                f"Expected the files of {name} in {folder.resolve()}; they have as many images of each class as those "
                f"of {other}, which have the same names. Set data.root to the folder of {name}, or put each set into a "
                f"folder of its name ({name}/, {other}/) and data.root to the folder that holds both."
            )
