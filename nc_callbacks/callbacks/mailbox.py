"""Results of a fit that ran in child processes, for the process that called it."""

from __future__ import annotations

import os
import tempfile
import uuid
from pathlib import Path
from typing import Any

import torch


class Mailbox:
    """One place on disk that a callback and its copy in a child process share."""

    def __init__(self) -> None:
        self._path = Path(tempfile.gettempdir(), f"nc_callbacks-{uuid.uuid4().hex}.pt")
        self._owner = os.getpid()

    def send(self, content: dict[str, Any]) -> None:
        """Leave something for the process that made this; there, nothing is sent."""
        if os.getpid() != self._owner:
            unfinished = self._path.with_suffix(".part")
            torch.save(content, unfinished)
            os.replace(unfinished, self._path)

    def take(self) -> dict[str, Any] | None:
        """Content left since the last call, if any."""
        if os.getpid() != self._owner or not self._path.is_file():
            return None
        content = torch.load(self._path, weights_only=True)
        self._path.unlink()
        return content
