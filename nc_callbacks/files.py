"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def replacing(path: str | Path, mode: str = "w", **settings: Any) -> Iterator[IO[Any]]:
    """A file beside `path` that takes its place when all is written; who reads meanwhile finds the old one.

    Args:
        path: The file to write.
        mode: ``"w"`` (UTF-8) or ``"wb"``.
        settings: Passed to `open`.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    if "b" not in mode:
        settings.setdefault("encoding", "utf-8")
    try:
        with open(unfinished, mode, **settings) as file:
            yield file
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_whole(path: str | Path, text: str) -> None:
    """Write a text in one go, or leave what is there."""
    with replacing(path) as file:
        file.write(text)
