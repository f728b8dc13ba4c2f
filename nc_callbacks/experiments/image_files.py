"""Image files in folders, one for each class: which there are, and their pixels."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Endings of image files, those of torchvision's ImageFolder."""

GREY = ("1", "L", "LA", "I;16", "I;16B", "I;16L")
"""PIL's modes without colours."""

SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval")
"""Names that folders of splits go by: no classes."""

Files = list[tuple[Path, int]]
"""Image files and their classes."""


def split_folders(root: Path) -> tuple[Path, Path | None]:
    """The folders with the classes of the training and the validation images; None where these are to be drawn.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: Folders have names of splits, and not those that are known.
    """
    if not root.is_dir():
        raise FileNotFoundError(
            f"Images were looked for in {root.resolve()}, which is no folder. Set data.root to one with a subfolder of "
            "images for each class under train/ and val/."
        )
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    val = next((root / name for name in ("val", "test") if name in names), None)
    if "train" in names and (val is not None or len(names) == 1):
        return root / "train", val
    if "train" in names or any(name.lower() in SPLITS for name in names):
        raise ValueError(
            f"Expected train/ and val/ (or test/) in {root.resolve()}, or train/ alone, or the classes "
            f"themselves; found {', '.join(names[:5])}{more(names)}. Rename the folders, or take away what is no split."
        )
    return root, None


def files_of(folder: Path) -> tuple[list[str], Files]:
    """Names of the classes under a folder, and their image files with the number of the class.

    Raises:
        ValueError: A class has no image.
        FileNotFoundError: There are not two classes.
    """
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    classes = [entry for entry in entries if entry.is_dir()]
    others = [entry for entry in entries if not entry.is_dir()]
    if len(classes) < 2:
        raise FileNotFoundError(
            f"Expected a subfolder of images for each of at least two classes in {folder.resolve()}, found "
            f"{', '.join(entry.name for entry in classes) or 'none'}."
        )
    files: Files = []
    empty = []
    for label, place in enumerate(classes):
        before = len(files)
        for found, subfolders, names in os.walk(place, followlinks=True):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            paths = [Path(found, name) for name in sorted(names) if not name.startswith(".")]
            files += [(path, label) for path in paths if path.suffix.lower() in SUFFIXES]
            others += [path for path in paths if path.suffix.lower() not in SUFFIXES]
        if len(files) == before:
            empty.append(place.name)
    if empty:
        raise ValueError(
            f"Expected images ({', '.join(SUFFIXES)}) of each class in {folder.resolve()}; there are none in "
            f"{', '.join(empty[:5])}{more(empty)}. Add some, or take the folder away."
        )
    if others:
        warnings.warn(
            f"Left out, since they are no images in a class's folder: {', '.join(map(str, others[:5]))}{more(others)}.",
            stacklevel=2,
        )
    return [place.name for place in classes], files


def channels_of(paths: Sequence[Path]) -> int:
    """3 if one of the images has colours, 1 otherwise.

    Raises:
        ValueError: Files are no images.
    """
    modes: set[str] = set()
    broken = []
    for path in paths:
        try:
            with Image.open(path) as image:
                modes.add(image.mode)
        except (UnidentifiedImageError, OSError):
            broken.append(path)
    if broken:
        raise ValueError(f"No images, whatever their names say: {', '.join(map(str, broken[:5]))}{more(broken)}.")
    return 1 if modes <= set(GREY) else 3


def read_image(path: Path, channels: int, size: int) -> UInt8[Tensor, "c size size"]:
    """The middle of an image, its shorter side resized.

    Raises:
        ValueError: It cannot be read, or its pixels have no range that is known.
    """
    from torchvision.transforms.functional import center_crop, resize

    try:
        with Image.open(path) as file:
            file.load()
            image: Image.Image = file.copy()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error}).") from error
    if image.mode in ("I", "F"):
        raise ValueError(f"{path} has pixels of 32 bits, whose range is not known: save it with 8 or 16.")
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    image = image.convert("L" if channels == 1 else "RGB")
    pixels = np.array(center_crop(resize(image, [size]), [size, size]))
    return torch.from_numpy(pixels).view(size, size, channels).permute(2, 0, 1)


def more(listed: Sequence[object]) -> str:
    """The end of a list of which the first five are named."""
    return f" and {len(listed) - 5} more" if len(listed) > 5 else ""
