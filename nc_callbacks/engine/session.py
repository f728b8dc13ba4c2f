"""What the callbacks of one trainer share: one look for all, one stream, what was warned of."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from nc_callbacks.distributed import FailedElsewhereError, InterruptedPassError
from nc_callbacks.engine.look import Look
from nc_callbacks.engine.online import Online
from nc_callbacks.engine.passes import Memory
from nc_callbacks.engine.request import Observation, Source

if TYPE_CHECKING:
    from nc_callbacks.callbacks.base import CollapseCallback

Observations = dict[str, dict[str, Observation]]
"""By split and layer."""


@dataclass
class Shared:
    """What the callbacks of one trainer share while it runs."""

    looks: dict[Source, tuple[Observations | None, list[CollapseCallback]]] = field(default_factory=dict)
    """What was found at each source (None where it failed), and who has not read it yet."""
    streams: dict[Source, Online] = field(default_factory=dict)
    """Of the sources that are gathered online."""
    memory: Memory = field(default_factory=Memory)
    warned: set[str] = field(default_factory=set)

    def warn_once(self, about: str, message: str) -> None:
        """Warn, unless it was done."""
        if about not in self.warned:
            self.warned.add(about)
            rank_zero_warn(message)

    def warn_of_failure(self, error: Exception, what: str, rank: int) -> None:
        """Warn once that something could not be measured, on the rank where it failed."""
        if isinstance(error, InterruptedPassError) or "failure" in self.warned:
            return
        message = f"{what} failed, and nothing is measured there; training goes on. {type(error).__name__}: {error}"
        if isinstance(error, FailedElsewhereError):
            self.warn_once("failure", message)
        else:
            self.warned.add("failure")
            warnings.warn(f"[rank {rank}] {message}" if rank else message, stacklevel=2)

    def close(self) -> None:
        """Take all hooks off the model."""
        for stream in self.streams.values():
            stream.stop()


_shared: WeakKeyDictionary[Trainer, Shared] = WeakKeyDictionary()


def shared(trainer: Trainer) -> Shared:
    """What the callbacks of this trainer share."""
    if trainer not in _shared:
        _shared[trainer] = Shared()
    return _shared[trainer]


def close(trainer: Trainer) -> None:
    """End the run of a trainer."""
    if trainer in _shared:
        _shared.pop(trainer).close()


def make_look(trainer: Trainer, model: LightningModule, source: Source, peers: list[CollapseCallback]) -> Look:
    """A look at one source that serves all these callbacks."""
    needs, cache_bytes = reduce(or_, (peer.needs for peer in peers)), max(peer.cache_bytes for peer in peers)
    state = shared(trainer)

    def warn(message: str) -> None:
        state.warn_once(message, message)

    return Look(trainer, model, source, needs, cache_bytes, source.head or "", state.memory, warn)


def observations_for(
    callback: CollapseCallback,
    trainer: Trainer,
    peers: list[CollapseCallback],
    find: Callable[[list[CollapseCallback]], Observations],
) -> Observations | None:
    """What was found for this callback: the first of its peers that asks looks for all; None where that failed."""
    state = shared(trainer)
    if callback.source not in state.looks:
        found: Observations | None = None
        try:
            found = find(peers)
        except Exception as error:
            what = f"{type(callback).__name__}: the look after epoch {trainer.current_epoch}"
            state.warn_of_failure(error, what, trainer.global_rank)
        state.looks[callback.source] = found, peers
    found, waiting = state.looks[callback.source]
    waiting.remove(callback)
    if not waiting:
        # Covariances can be large: they do not stay while training goes on.
        del state.looks[callback.source]
    return found
