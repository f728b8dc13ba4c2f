"""Anyone's images as a LightningDataModule: a folder of files for each class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from nc_callbacks.experiments.data import stratified
from nc_callbacks.experiments.image_files import Files, channels_of, files_of, more, read_image, split_folders


class ImageFolderData(LightningDataModule):
    """Training and validation loaders of the images under a folder.

    As torchvision's ImageFolder reads them: a subfolder for each class, classes in the order of their names, images at
    any depth below. The classes lie under ``train/`` and ``val/`` (or ``test/``, where there is no ``val/``). Without a
    second folder, or with the classes straight under the root, a share of each class is drawn for validation.

    The shorter side of an image is resized to `size`, and the middle is cut out; pixels are in [0, 1]. All images have
    three channels if one has colours, and otherwise one. Sets that fit are read into memory once, larger ones stream
    from disk.

    Args:
        root: The folder.
        size: Height and width.
        batch_size: Samples a batch.
        num_workers: Worker processes of the loaders; by default none in memory, and up to four for streams.
        seed: Of the draw for validation and of that of `samples`.
        samples: Training images to train with, drawn at random so that each class keeps its share; by default all.
        val_share: Share of each class that is drawn for validation where there is no second folder.
        memory: GiB that the images may take, as 32-bit floats, to be read into memory.
        name: What the set is called in tables; in figures it is the folder's name, where this is not given.

    Raises:
        ValueError: An argument is out of its range; in `setup`, or where the classes are first asked for: a class has
            no image, or is in one of the two folders alone, or a file cannot be read as an image.
        FileNotFoundError: There is no such folder, or there are not two classes in it.
    """

    def __init__(
        self,
        root: str | Path = "data",
        size: int = 32,
        batch_size: int = 128,
        num_workers: int | None = None,
        seed: int = 0,
        samples: int | None = None,
        val_share: float = 0.2,
        memory: float = 4.0,
        name: str = "image_folder",
    ) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}.")
        if not 0 < val_share < 1:
            raise ValueError(f"val_share must lie between 0 and 1, got {val_share}.")
        self.root = Path(root)
        self.size = size
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.samples = samples
        self.val_share = val_share
        self.memory = memory
        self.image_set = name
        self.name = self.root.resolve().name if name == "image_folder" else name
        self.train_set: Dataset | None = None
        self.val_set: Dataset | None = None

    @cached_property
    def _files(self) -> tuple[list[str], Files, Files]:
        """Class names, and the files of training and validation."""
        train, val = split_folders(self.root)
        names, files = files_of(train)
        if val is None:
            chosen = self._drawn_for_validation(names, files)
            others = [entry for i, entry in enumerate(files) if i not in chosen]
            return names, others, [files[i] for i in sorted(chosen)]
        val_names, val_files = files_of(val)
        if alone := sorted(set(names) ^ set(val_names)):
            where = {name: train if name in names else val for name in alone}
            listed = ", ".join(f"{name} (in {place.name}/ alone)" for name, place in list(where.items())[:5])
            raise ValueError(
                f"Expected {train} and {val} to have the same classes; {listed}{more(alone)}. Add the missing folders, "
                "or take these away."
            )
        return names, files, val_files

    def _drawn_for_validation(self, names: Sequence[str], files: Files) -> set[int]:
        labels = torch.tensor([label for _, label in files])
        counts = torch.bincount(labels, minlength=len(names))
        if single := [name for name, count in zip(names, counts.tolist(), strict=True) if count < 2]:
            raise ValueError(
                f"Expected at least two images of each class, one of them for validation; {', '.join(single[:5])}"
                f"{more(single)} has one. Add images, or a folder val/ beside train/."
            )
        order = torch.randperm(len(files), generator=torch.Generator().manual_seed(self.seed))
        chosen: set[int] = set()
        for c, count in enumerate(counts.tolist()):
            taken = min(max(1, round(self.val_share * count)), count - 1)
            chosen |= set(order[labels[order] == c][:taken].tolist())
        return chosen

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of their numbers."""
        return self._files[0]

    @property
    def num_classes(self) -> int:
        """k."""
        return len(self.class_names)

    @cached_property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        _, train, val = self._files
        return channels_of([path for path, _ in train + val]), self.size, self.size

    def setup(self, stage: str | None = None) -> None:
        """Find the images, and read those that memory holds."""
        if self.train_set is not None:
            return
        _, train, val = self._files
        if self.samples is not None:
            labels = torch.tensor([label for _, label in train])
            train = [train[i] for i in stratified(labels, self.samples, self.seed).tolist()]
        self._train_labels = torch.tensor([label for _, label in train])
        channels = self.image_shape[0]
        needed = 4 * (len(train) + len(val)) * channels * self.size**2
        if needed <= self.memory * 2**30:
            both = zip((train, val), ("training", "validation"), strict=True)
            self.train_set, self.val_set = (read_all(files, channels, self.size, which) for files, which in both)
        else:
            self.train_set, self.val_set = (Streamed(files, channels, self.size) for files in (train, val))

    @property
    def class_counts(self) -> Tensor:
        """Training samples of each class (k,); after `setup`."""
        return torch.bincount(self._train_labels, minlength=self.num_classes)

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches of the training set."""
        return self._loader(self.train_set, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Batches of the validation set, in order."""
        return self._loader(self.val_set, shuffle=False)

    def _loader(self, dataset: Dataset | None, shuffle: bool) -> DataLoader:
        assert dataset is not None
        workers = self.num_workers
        if workers is None:
            workers = min(4, os.cpu_count() or 1) if isinstance(dataset, Streamed) else 0
        return DataLoader(
            dataset, batch_size=self.batch_size, shuffle=shuffle, num_workers=workers, persistent_workers=workers > 0
        )


class Streamed(Dataset):
    """Images read from disk each time that they are asked for.

    Args:
        files: Image files and their classes.
        channels: 1 or 3.
        size: Height and width.
    """

    def __init__(self, files: Files, channels: int, size: int) -> None:
        self.files = files
        self.channels = channels
        self.size = size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        return read_image(path, self.channels, self.size).float() / 255, label


def read_all(files: Files, channels: int, size: int, which: str) -> TensorDataset:
    """Images and classes in memory, with a progress bar.

    Args:
        files: Image files and their classes.
        channels: 1 or 3.
        size: Height and width.
        which: What the progress bar calls them.
    """
    images = torch.empty(len(files), channels, size, size)
    for i, (path, _) in enumerate(track(files, f"Reading {which} images", transient=True)):
        images[i] = read_image(path, channels, size)
    return TensorDataset(images.div_(255), torch.tensor([label for _, label in files]))
