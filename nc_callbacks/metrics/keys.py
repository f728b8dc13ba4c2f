"""Log keys: made and read here, and nowhere else."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

SPLITS = ("train", "val", "test")
"""The splits of log keys."""

_LOADER = re.compile(r"(.+)/dataloader_idx_(0|[1-9][0-9]*)", re.DOTALL)
"""How Lightning ends the keys of one of several evaluation loaders."""


@dataclass(frozen=True)
class LogKey:
    """The parts of a log key; `str` joins them, and `LogKey.parse` takes them apart again.

    Example:
        >>> key = LogKey("nc1", "val", "backbone.3", loader=0)
        >>> str(key)
        'nc/val/backbone.3/nc1/dataloader_idx_0'
        >>> LogKey.parse(str(key)) == key
        True
    """

    name: str
    """The metric; of keys that are not ours, all but a split before it."""
    split: str
    layer: str = ""
    """Empty at the classifier's input."""
    loader: int | None = None
    """Which of several evaluation loaders, counted from 0."""
    prefix: str = "nc"
    """Empty in keys that are not ours."""

    def __str__(self) -> str:
        end = "" if self.loader is None else f"dataloader_idx_{self.loader}"
        return "/".join(part for part in (self.prefix, self.split, self.layer, self.name, end) if part)

    @classmethod
    def parse(cls, text: str) -> LogKey:
        """Read a log key: ours, or any other.

        Example:
            >>> LogKey.parse("nc/train/backbone.3/nc1").layer
            'backbone.3'
            >>> LogKey.parse("val/loss")
            LogKey(name='loss', split='val', layer='', loader=None, prefix='')
            >>> LogKey.parse("lr-SGD").is_ours
            False
        """
        found = _LOADER.fullmatch(text)
        start, loader = (found[1], int(found[2])) if found else (text, None)
        parts = start.split("/")
        if not all(parts):
            return cls(start, "", "", loader, "")
        at = next((place for place in range(1, len(parts) - 1) if parts[place] in SPLITS), None)
        if at is not None:
            return cls(parts[-1], parts[at], "/".join(parts[at + 1 : -1]), loader, "/".join(parts[:at]))
        if len(parts) == 2 and parts[0] in SPLITS:
            return cls(parts[1], parts[0], "", loader, "")
        return cls(start, "", "", loader, "")

    @classmethod
    def at(cls, where: str, name: str = "", prefix: str = "nc") -> LogKey:
        """The key of a metric at a place as `where` gives it; without a name, the place alone.

        Example:
            >>> str(LogKey.at("val/backbone.3/dataloader_idx_1", "nc1"))
            'nc/val/backbone.3/nc1/dataloader_idx_1'
            >>> LogKey.at("val/dataloader_idx_1").loader
            1
        """
        found = _LOADER.fullmatch(where)
        start, loader = (found[1], int(found[2])) if found else (where, None)
        return replace(cls.parse(f"{prefix}/{start}/{name or 'any'}"), name=name, loader=loader)

    @property
    def is_ours(self) -> bool:
        """Whether the key has the form of those that the callbacks log."""
        return bool(self.prefix and self.split)

    @property
    def where(self) -> str:
        """Split, layer and loader as they stand in the key, such as ``val/backbone.3/dataloader_idx_0``.

        Example:
            >>> LogKey("nc1", "val", loader=1).where
            'val/dataloader_idx_1'
        """
        return str(LogKey("", self.split, self.layer, self.loader, ""))

    @property
    def data(self) -> str:
        """The data that it is of, in words: split and loader.

        Example:
            >>> LogKey("nc1", "val", "backbone.3", loader=1).data
            'val, loader 1'
        """
        loader = "" if self.loader is None else f"loader {self.loader}"
        return ", ".join(part for part in (self.split, loader) if part)

    @property
    def title(self) -> str:
        """Split, loader and layer, in words.

        Example:
            >>> LogKey("nc1", "val", "backbone.3", loader=1).title
            'val, loader 1, backbone.3'
        """
        return ", ".join(part for part in (self.data, self.layer) if part)
