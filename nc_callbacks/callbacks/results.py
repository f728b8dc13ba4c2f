"""The results of a callback: the last look, the history of a fit, the classifier."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from nc_callbacks.callbacks.history import Record, packed, unpacked
from nc_callbacks.callbacks.mailbox import Mailbox
from nc_callbacks.engine.session import Watch
from nc_callbacks.engine.trainer import runs_in_children


class Results(Callback):
    """A callback's results, also of a fit that ran in child processes; saved in and restored from checkpoints."""

    _head: str
    _num_classes: int | None

    def start_results(self) -> None:
        """Begin without any."""
        self._latest: Record = {}
        self._history: list[Record] = []
        self._head, self._num_classes = "", None
        self._mailbox = Mailbox()

    @property
    def latest(self) -> Record:
        """Result of the last look."""
        self._receive()
        return self._latest

    @latest.setter
    def latest(self, value: Record) -> None:
        self._latest = value

    @property
    def history(self) -> list[Record]:
        """One dict per look of a fit."""
        self._receive()
        return self._history

    @history.setter
    def history(self, value: list[Record]) -> None:
        self._history = value

    @property
    def head(self) -> str:
        """Dotted name of the classifier; empty until it is found."""
        self._receive()
        return self._head

    @property
    def num_classes(self) -> int | None:
        """k; None until the classifier is found."""
        self._receive()
        return self._num_classes

    def state_dict(self) -> dict[str, Any]:
        """What is saved in a checkpoint."""
        return {"history": packed(self.history), "num_classes": self._num_classes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what a checkpoint holds."""
        self._history = unpacked(state_dict["history"])
        self._num_classes = state_dict["num_classes"]
        self._latest = dict(self._history[-1]) if self._history else {}

    def forget_from(self, epoch: int) -> None:
        """Drop looks after this epoch and later ones: of a fit that was cut off and is repeated, or of an earlier."""
        self._history = [record for record in self.history if record["epoch"] < epoch]
        if self._latest.get("epoch", -1) >= epoch:
            self._latest = {}

    def adopt(self, found: Watch, trainer: Trainer) -> None:
        """Take over which classifier was found; a history of another number of classes starts anew."""
        if found.num_classes is None:
            return
        if self._history and self._num_classes not in (None, found.num_classes):
            place = " in the checkpoint" if trainer.ckpt_path else ""
            rank_zero_warn(
                f"The history of {type(self).__name__}{place} is of {self._num_classes} classes, and "
                f"{found.source.head!r} has {found.num_classes}: it starts anew."
            )
            self._history, self._latest = [], {}
        self._head, self._num_classes = found.source.head or "", found.num_classes

    def send_results(self, trainer: Trainer) -> None:
        """Hand the results to the process that called the trainer, where this one is its child."""
        if runs_in_children(trainer) and trainer.is_global_zero:
            found = {"latest": self._latest, "history": self._history}
            self._mailbox.send(found | {"head": self._head, "num_classes": self._num_classes})

    def _receive(self) -> None:
        if (found := self._mailbox.take()) is not None:
            self._latest, self._history = found["latest"], found["history"]
            self._head, self._num_classes = found["head"], found["num_classes"]
