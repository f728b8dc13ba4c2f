"""The state that the callbacks of one trainer share while it runs, and who looks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from operator import or_
from typing import Any
from weakref import WeakKeyDictionary

from lightning.pytorch import LightningModule, Trainer

from nc_callbacks.engine.checks import check_names
from nc_callbacks.engine.given import GivenInputs
from nc_callbacks.engine.look import Look, MakeLoaders
from nc_callbacks.engine.monitors import Monitors
from nc_callbacks.engine.notices import Notices
from nc_callbacks.engine.observation import Observations
from nc_callbacks.engine.online import Online, refuse_compiled
from nc_callbacks.engine.passes import Memory
from nc_callbacks.engine.request import DEFAULT_CACHE, Needs, Request, Source
from nc_callbacks.engine.trainer import evaluation_loaders, loaders_of_fit, selects
from nc_callbacks.metrics import LogKey
from nc_callbacks.probe import Head


@dataclass(eq=False)
class Watch:
    """The wishes of one callback, and the classifier that was found for it."""

    name: str
    """Of the callback, for messages."""
    given: Source
    layers: tuple[str, ...]
    splits: tuple[str, ...]
    prefix: str
    """First part of its log keys."""
    ask: Callable[[], Needs]
    """Needs of a pass, asked for when it is made."""
    is_due: Callable[[Trainer], bool]
    """Whether it looks after the current epoch."""
    cache_bytes: int | None = None
    """None where it does not say."""
    names: frozenset[str] = frozenset()
    """Metrics that another kind of callback may log too."""
    settings: tuple[Any, ...] = ()
    """Options that change the values: two of one kind that differ in them have different values."""
    verify: bool = False
    """Whether the first look shall say what it has changed."""
    source: Source = field(init=False)
    """With the classifier by name, once it is found."""
    num_classes: int | None = None
    measured_in: int | None = None
    """The epoch of its last look."""

    def __post_init__(self) -> None:
        self.source = self.given

    def looks_at(self, kind: str) -> bool:
        """Whether it looks at some loader of ``"val"`` or ``"test"``."""
        return any(LogKey.at(split).split == kind for split in self.splits)


class Session:
    """Looks, streams, monitors, memory and notices of one trainer while it runs."""

    def __init__(self) -> None:
        self.watches: list[Watch] = []
        self.found: dict[Source, tuple[Observations | None, list[Watch]]] = {}
        """Observations from each source (None where it failed), and who has not read them yet."""
        self.streams: dict[Source, Online] = {}
        self.heads: dict[Source, Head] = {}
        """What was found out about each source's classifier."""
        self.memory = Memory()
        self.verified: set[Source] = set()
        """Sources of which a look was made that checked itself."""
        self.notices = Notices()
        self.given = GivenInputs(self.notices.once)
        self.monitors = Monitors()
        self.logged: dict[str, int] = {}
        """Epoch in which each log key last had a value."""

    def join(self, watch: Watch) -> None:
        """Take a callback in.

        Raises:
            ValueError: Its values would have the log keys of another's, and be different ones.
        """
        if watch in self.watches:
            return
        for other in self.watches:
            refuse_equal_keys(watch, watch.given, other, other.given)
        self.watches.append(watch)

    def check_names(self, watch: Watch, model: LightningModule, fitting: bool, made: bool) -> None:
        """Refuse names that the model does not have, and compiled modules that cannot be watched online.

        Args:
            watch: Names them.
            model: The LightningModule.
            fitting: Whether it is about to be trained.
            made: Whether all its layers are made.
        """
        if check_names(model, watch.given, watch.layers, made) and watch.given.online and fitting:
            refuse_compiled(model, [*([watch.given.head] if watch.given.head else []), *watch.layers])

    def is_new_for(self, prefix: str) -> Callable[[str, Trainer], bool]:
        """Whether a log key has a value of this epoch, or is of none of the callbacks, which have all measured."""

        def is_new(key: str, trainer: Trainer) -> bool:
            mine = [watch for watch in self.watches if watch.prefix == prefix]
            done = all(watch.measured_in == trainer.current_epoch for watch in mine)
            return self.logged.get(key) == trainer.current_epoch or (done and key not in self.logged)

        return is_new

    def note(self, watch: Watch, keys: list[str], trainer: Trainer) -> None:
        """Remember which log keys a callback has given values."""
        watch.measured_in = trainer.current_epoch
        self.logged.update(dict.fromkeys(keys, trainer.current_epoch))
        self.monitors.let_step(trainer)

    def start_fit(self, watch: Watch, trainer: Trainer, model: LightningModule) -> None:
        """Try what was given on a batch, once for all that share it."""
        peers = [peer for peer in self.watches if peer.given == watch.given]
        if peers[0] is not watch:
            return
        splits = {split for peer in peers for split in peer.splits}
        self._try(watch, peers, trainer, model, lambda: loaders_of_fit(trainer, splits))
        if watch.given.online:
            # One that names the head and one that finds it share a stream too.
            sharing = [peer for peer in self.watches if peer.source == watch.source]
            look = self._look(trainer, model, watch.source, sharing)
            self.streams[watch.source] = Online(look, self.notices.once)

    def start_evaluation(self, watch: Watch, trainer: Trainer, model: LightningModule, split: str) -> None:
        """The same for `trainer.validate` and `trainer.test`."""
        peers = [peer for peer in self.watches if peer.given == watch.given and peer.looks_at(split)]
        if peers and peers[0] is watch:
            self._try(watch, peers, trainer, model, self._evaluation_loaders(trainer, split, peers))

    def _try(
        self, watch: Watch, peers: list[Watch], trainer: Trainer, model: LightningModule, make_loaders: MakeLoaders
    ) -> None:
        head = self._look(trainer, model, watch.given, peers).check(make_loaders)
        for peer in peers:
            peer.source, peer.num_classes = replace(peer.given, head=head.name), head.num_classes
        # What is known of layers that others watch stays.
        known = self.heads.get(watch.source, head)
        self.heads[watch.source] = head.with_layers_of(known)
        for peer in peers:
            for other in self.watches:
                if other.num_classes is not None and other is not peer:
                    refuse_equal_keys(peer, peer.source, other, other.source)

    def _look(self, trainer: Trainer, model: LightningModule, source: Source, peers: list[Watch]) -> Look:
        """A look at one source that serves all these callbacks."""
        given = [watch.cache_bytes for watch in self.watches if watch.cache_bytes is not None]
        request = Request(source, reduce(or_, (peer.ask() for peer in peers)), min(given, default=DEFAULT_CACHE))
        verify = source not in self.verified and any(peer.verify for peer in peers)
        return Look(trainer, model, request, self.memory, self.notices.warn, self.heads.get(source), verify)

    def observe(self, watch: Watch, trainer: Trainer, model: LightningModule) -> Observations | None:
        """Observations of a look after the epoch, for a callback that is due; None where it failed."""
        peers = [peer for peer in self.watches if peer.source == watch.source and peer.is_due(trainer)]

        def find() -> Observations:
            if watch.source.online:
                return self.streams[watch.source].finish()
            splits = {split for peer in peers for split in peer.splits}
            return self._look(trainer, model, watch.source, peers).run(lambda: loaders_of_fit(trainer, splits))

        return self._shared(watch, peers, trainer, find)

    def observe_evaluation(
        self, watch: Watch, trainer: Trainer, model: LightningModule, split: str
    ) -> Observations | None:
        """Observations of a look in `trainer.validate` or `trainer.test`, for a callback; None where it failed."""
        peers = [peer for peer in self.watches if peer.source == watch.source and peer.looks_at(split)]
        make_loaders = self._evaluation_loaders(trainer, split, peers)
        return self._shared(
            watch, peers, trainer, lambda: self._look(trainer, model, watch.source, peers).run(make_loaders)
        )

    def _evaluation_loaders(self, trainer: Trainer, split: str, peers: list[Watch]) -> MakeLoaders:
        splits = {of_peer for peer in peers for of_peer in peer.splits}
        return partial(evaluation_loaders, trainer, split, splits, self.notices.warn)

    def _shared(
        self, watch: Watch, peers: list[Watch], trainer: Trainer, find: Callable[[], Observations]
    ) -> Observations | None:
        """The first of the peers that asks looks for all."""
        if watch.source not in self.found:
            found: Observations | None = None
            try:
                found = find()
            except Exception as error:
                what = f"{watch.name}: the look after epoch {trainer.current_epoch + 1}"
                self.notices.of_failure(error, what, trainer.global_rank)
            self.found[watch.source] = found, peers
            self.verified.add(watch.source)
        found, waiting = self.found[watch.source]
        waiting.remove(watch)
        if not waiting:
            # Covariances can be large: they do not stay while training goes on.
            del self.found[watch.source]
        return found

    def streams_for(self, watch: Watch) -> list[tuple[Source, Online]]:
        """Streams of the online mode, for the first of the callbacks: each is served once."""
        return list(self.streams.items()) if self.streams and self.watches[0] is watch else []

    def start_epoch(self, watch: Watch, trainer: Trainer) -> None:
        """Begin a training epoch."""
        if self.watches[0] is watch:
            self.monitors.hold(trainer)
        for source, stream in self.streams_for(watch):
            if any(peer.source == source and peer.is_due(trainer) for peer in self.watches):
                stream.start()

    def begin_validation_batch(self, watch: Watch, model: LightningModule) -> None:
        """Watch what the step gives the model, at the first batch."""
        if self.watches[0] is watch:
            self.given.begin(model, watch.given)

    def end_validation_batch(self, watch: Watch, model: LightningModule, batch: Any) -> None:
        """Warn where looks give it something else."""
        if self.watches[0] is watch:
            self.given.end(model, batch)

    def watches_split(self, source: Source, label: str) -> bool:
        """Whether some callback looks at a loader from this source."""
        return any(peer.source == source and selects(peer.splits, label) for peer in self.watches)

    def close(self) -> None:
        """Take all hooks off the model, and leave the monitors as they were."""
        self.given.stop()
        for stream in self.streams.values():
            stream.stop()
        self.monitors.release()


_sessions: WeakKeyDictionary[Trainer, Session] = WeakKeyDictionary()


def session_of(trainer: Trainer) -> Session:
    """The session of this trainer."""
    if trainer not in _sessions:
        _sessions[trainer] = Session()
    return _sessions[trainer]


def close(trainer: Trainer) -> None:
    """End the run of a trainer."""
    if trainer in _sessions:
        _sessions.pop(trainer).close()


def refuse_equal_keys(one: Watch, source: Source, other: Watch, other_source: Source) -> None:
    """Refuse two callbacks that log different values under one key.

    Raises:
        ValueError: They do.
    """
    same_kind = one.name == other.name
    if one.prefix != other.prefix or not set(one.splits) & set(other.splits):
        return
    if not (same_kind or one.names & other.names):
        return
    # Which classifier is found is not known before a batch was tried.
    unknown = None in (source.head, other_source.head)
    same_source = source == (replace(other_source, head=source.head) if unknown else other_source)
    if same_source and (not same_kind or one.settings == other.settings):
        return
    keys = "all its log keys" if same_kind else ", ".join(sorted(one.names & other.names))
    raise ValueError(
        f"Two callbacks of this trainer, {other.name} and {one.name}, would log different values under the same keys "
        f"({one.prefix}/…: {keys}), of which loggers and monitors would see the mean. Give one of them another "
        f'prefix=..., such as prefix="{one.prefix}2".'
    )
