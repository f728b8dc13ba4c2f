"""Warnings that are given once."""

from __future__ import annotations

import warnings

from lightning.pytorch.utilities import rank_zero_warn

from nc_callbacks.distributed import FailedElsewhereError, InterruptedPassError


class Notices:
    """The warnings of one trainer's run, each given once."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def once(self, about: str, message: str) -> None:
        """Warn, unless it was done.

        Args:
            about: What it is about; two messages about the same are one.
            message: The text.
        """
        if about not in self._given:
            self._given.add(about)
            rank_zero_warn(message)

    def warn(self, message: str) -> None:
        """Warn, unless it was done with these words."""
        self.once(message, message)

    def of_failure(self, error: Exception, what: str, rank: int) -> None:
        """Warn once that something could not be measured, on the rank where it failed."""
        if isinstance(error, InterruptedPassError) or "failure" in self._given:
            return
        message = f"{what} failed, and nothing is measured there; training goes on. {type(error).__name__}: {error}"
        if isinstance(error, FailedElsewhereError):
            self.once("failure", message)
        else:
            self._given.add("failure")
            warnings.warn(f"[rank {rank}] {message}" if rank else message, stacklevel=2)
