"""Image sets as a LightningDataModule: whole in memory, pixels in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from nc_callbacks.experiments.idx_files import IDX_FILES, Images, mnist_like, read_idx

__all__ = ["IDX_FILES", "IMAGE_SETS", "ImageData", "ImageSet", "Images", "long_tailed", "read_idx", "stratified"]


@dataclass(frozen=True)
class ImageSet:
    """One of the data sets by its facts."""

    shape: tuple[int, int, int]
    num_classes: int
    load: Callable[[Path, bool, bool], Images]
    """From (root, train, download)."""
    files: str
    """File or folder that lies under the root when the data is there."""


class ImageData(LightningDataModule):
    """Training and validation loaders of an image set.

    ``digits`` (scikit-learn, no download) is split 80/20, stratified by class and drawn with `seed`. The others are
    validated on their official test set. ``fashion_mnist`` and ``mnist`` are also read from a folder that holds the
    four IDX .gz files, or holds them in a folder of the set's name.

    Args:
        name: ``digits``, ``fashion_mnist``, ``mnist``, ``cifar10`` or ``cifar100``.
        root: Folder that holds the data or takes the download.
        batch_size: Samples a batch.
        num_workers: Worker processes of the loaders.
        download: Download what is not there.
        seed: Of the split of ``digits``, and of the draw of `samples`.
        samples: Training images to train with, drawn at random so that each class keeps its share; by default all.
        imbalance: Training samples of the first class over those of the last; those between fall geometrically.

    Raises:
        ValueError: There is no data set of that name; in `setup`: it has fewer images than `samples`, or the
            files hold another set.
        FileNotFoundError: In `setup`: the data is not there and cannot be downloaded.

    Example:
        >>> data = ImageData("digits", batch_size=64)
        >>> data.setup()
        >>> data.image_shape, data.num_classes, len(data.train_set), len(data.val_set)
        ((1, 8, 8), 10, 1437, 360)
    """

    def __init__(
        self,
        name: str = "digits",
        root: str | Path = "data",
        batch_size: int = 128,
        num_workers: int = 0,
        download: bool = True,
        seed: int = 0,
        samples: int | None = None,
        imbalance: float | None = None,
    ) -> None:
        super().__init__()
        if name not in IMAGE_SETS:
            raise ValueError(f"name must be one of {', '.join(IMAGE_SETS)}, got {name!r}.")
        self.name = self.image_set = name
        self.root = Path(root)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.download = download
        self.seed = seed
        self.samples = samples
        self.imbalance = imbalance
        self.image_shape = IMAGE_SETS[name].shape
        self.num_classes = IMAGE_SETS[name].num_classes
        self.train_set: TensorDataset | None = None
        self.val_set: TensorDataset | None = None

    def setup(self, stage: str | None = None) -> None:
        """Load the training and validation images."""
        if self.train_set is not None:
            return
        if self.image_set == "digits":
            train, val = _digits(self.seed)
        else:
            train, val = self._load(True), self._load(False)
        if self.samples is not None:
            chosen = stratified(train[1], self.samples, self.seed)
            train = train[0][chosen], train[1][chosen]
        if self.imbalance is not None:
            chosen = long_tailed(train[1], self.imbalance, self.seed)
            train = train[0][chosen], train[1][chosen]
        self.train_set, self.val_set = TensorDataset(*train), TensorDataset(*val)

    def _load(self, train: bool) -> Images:
        image_set = IMAGE_SETS[self.image_set]
        try:
            images, labels = image_set.load(self.root, train, self.download)
        except (RuntimeError, OSError) as error:
            tried = "and it could not be downloaded" if self.download else "and data.download is false"
            raise FileNotFoundError(
                f"{self.image_set} was looked for in {self.root.resolve()}, which should hold {image_set.files}; it is "
                f"not there, {tried} ({error}). Put it there, set data.root to where it is, or train without it: "
                "data=digits."
            ) from error
        if images.shape[1:] != image_set.shape:
            raise ValueError(
                f"{self.image_set} in {self.root} has images of {images.shape[1:]}, not {image_set.shape}."
            )
        return images.float() / 255, labels.long()

    @property
    def class_counts(self) -> Tensor:
        """Training samples of each class (k,); after `setup`."""
        assert self.train_set is not None
        return torch.bincount(self.train_set.tensors[1], minlength=self.num_classes)

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches of the training set."""
        return self._loader(self.train_set, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Batches of the validation set, in order."""
        return self._loader(self.val_set, shuffle=False)

    def _loader(self, dataset: TensorDataset | None, shuffle: bool) -> DataLoader:
        assert dataset is not None
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )


def stratified(labels: Int[Tensor, " n"], samples: int, seed: int) -> Int[Tensor, " samples"]:
    """Indices of samples drawn at random, without repeats and in rising order: of each class its share of them.

    The shares are rounded to whole samples so that they add up, the largest remainders up.

    Args:
        labels: Class of each.
        samples: How many to draw.
        seed: Of the draw.

    Raises:
        ValueError: There are not that many.

    Example:
        >>> labels = torch.tensor([0, 1, 1, 0, 1, 1, 1, 1, 0])
        >>> labels[stratified(labels, 3, seed=0)].bincount().tolist()
        [1, 2]
    """
    if not 0 < samples <= len(labels):
        raise ValueError(f"samples must be between 1 and the {len(labels)} there are, got {samples}.")
    counts = torch.bincount(labels)
    shares = counts.double() * samples / len(labels)
    taken = shares.floor().long()
    taken[(shares - taken).argsort(descending=True, stable=True)[: samples - int(taken.sum())]] += 1
    return _drawn(labels, taken, seed)


def long_tailed(labels: Int[Tensor, " n"], imbalance: float, seed: int) -> Int[Tensor, " samples"]:
    """Indices of samples drawn at random, without repeats and in rising order: class c keeps n ρ^(−c/(k−1)) of them.

    n is the size of the smallest class, ρ the ratio of the first class's samples to the last's; at least one is kept.

    Args:
        labels: Class of each.
        imbalance: ρ.
        seed: Of the draw.

    Raises:
        ValueError: The ratio is below 1.

    Example:
        >>> labels = torch.arange(300) % 3
        >>> labels[long_tailed(labels, 100, seed=0)].bincount().tolist()
        [100, 10, 1]
    """
    if imbalance < 1:
        raise ValueError(f"imbalance must be at least 1, got {imbalance}.")
    counts = torch.bincount(labels)
    falling = imbalance ** -torch.linspace(0, 1, len(counts), dtype=torch.float64)
    return _drawn(labels, (counts.min() * falling).round().clamp(min=1).long(), seed)


def _drawn(labels: Tensor, taken: Tensor, seed: int) -> Tensor:
    """Indices of so many samples of each class."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = order[labels[order].argsort(stable=True)]
    parts = by_class.split(torch.bincount(labels).tolist())
    return torch.cat([part[:count] for part, count in zip(parts, taken.tolist(), strict=True)]).sort().values


def _digits(seed: int) -> tuple[Images, Images]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels / 16).float().view(-1, 1, 8, 8)
    parts = train_test_split(images, torch.from_numpy(labels), test_size=0.2, stratify=labels, random_state=seed)
    return (parts[0], parts[2]), (parts[1], parts[3])


def _cifar(torchvision_name: str) -> Callable[[Path, bool, bool], Images]:
    def load(root: Path, train: bool, download: bool) -> Images:
        from torchvision import datasets

        loaded = getattr(datasets, torchvision_name)(root, train=train, download=download)
        return torch.from_numpy(loaded.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(loaded.targets)

    return load


_IDX = "the files {} or, in {}/raw, their unpacked forms"
_NAMES = ", ".join(name for names in IDX_FILES.values() for name in names)

IMAGE_SETS = {
    "digits": ImageSet((1, 8, 8), 10, lambda *_: _digits(0)[0], "nothing: they come with scikit-learn"),
    "fashion_mnist": ImageSet((1, 28, 28), 10, mnist_like("fashion_mnist"), _IDX.format(_NAMES, "FashionMNIST")),
    "mnist": ImageSet((1, 28, 28), 10, mnist_like("mnist"), _IDX.format(_NAMES, "MNIST")),
    "cifar10": ImageSet((3, 32, 32), 10, _cifar("CIFAR10"), "the folder cifar-10-batches-py"),
    "cifar100": ImageSet((3, 32, 32), 100, _cifar("CIFAR100"), "the folder cifar-100-python"),
}
"""Names that `ImageData` can load."""
