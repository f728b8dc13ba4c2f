"""Passes over a trainer's data: batches of each rank, in step, through the model standing still."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from nc_callbacks.data.loader import OwnLoader, own_loaders, single_loaders
from nc_callbacks.data.preserve import preserved
from nc_callbacks.distributed import InterruptedPassError
from nc_callbacks.engine.limits import batch_limit, len_of, stream_limit
from nc_callbacks.engine.progress import progress
from nc_callbacks.engine.request import Source
from nc_callbacks.engine.trainer import is_a, is_sharded, on_device, place_of, ranks_of
from nc_callbacks.probe import Head, Tap, by_name, call_model, check_head, default_batch_fn, explained, undisturbed

_SMALLEST_SHARE = 64
"""How many times smaller than the loader's a look's batches become before it gives up."""

_END = object()
"""Given by a loader that is through."""


@dataclass
class Memory:
    """Memory that the looks of a trainer may use; less after one that ran out of it."""

    cache: bool = True
    divide_batch: int = 1
    gradients: bool = False
    """Whether forward passes keep what gradients need, for a model that asks for them."""

    def shrink(self) -> bool:
        """Give up the cache, then make batches smaller; whether there was something to give up."""
        if self.cache:
            self.cache = False
        elif self.divide_batch < _SMALLEST_SHARE:
            self.divide_batch *= 2
        else:
            return False
        return True


@dataclass(frozen=True)
class Step:
    """One batch that a rank runs the model on."""

    inputs: Any
    targets: Any
    counts: bool = True
    """Not where it is run only for the sake of the other ranks."""
    indices: Sequence[int] | None = None
    """Of its samples in the dataset, where they are known."""


@dataclass
class Passes:
    """Runs a trainer's model over loaders.

    Args:
        trainer: The trainer.
        model: Its LightningModule.
        source: How batches are read and the model is called.
        memory: What passes may use.
        warn: Called with what a user has to know.
    """

    trainer: Trainer
    model: LightningModule
    source: Source
    memory: Memory = field(default_factory=Memory)
    warn: Callable[[str], None] = rank_zero_warn

    def __post_init__(self) -> None:
        self.ranks = ranks_of(self.trainer)
        self.sharded = is_sharded(self.trainer)

    def each(
        self,
        split: str,
        loader: Any,
        tap: Tap,
        use: Callable[[Step], None],
        purpose: str = "",
        read: Callable[[Any], tuple[Any, Any]] | None = None,
        check: Callable[[Any], None] | None = None,
    ) -> None:
        """Run the model on all batches of this rank.

        Where anything fails on one rank, all raise, and none is left waiting (but for a sharded model whose own forward
        pass fails on one rank, in the midst of what it exchanges with the others).

        Args:
            split: What follows the prefix in log keys.
            loader: The split's.
            tap: Holds what the last run left, when `use` is called.
            use: Called after each run that counts; it asks nothing of the other ranks.
            purpose: Said beside the progress bar.
            read: From a batch as the loader gave it to inputs and targets; targets of None leave it out.
            check: Called, before the first `use`, with what the model returned.
        """
        read, checks = read or partial(self.inputs_and_targets, split=split), [check] if check else []
        owns = self.ranks.all_or_none(lambda: self.own_loaders_of(split, loader))
        shown = f"Neural collapse: {split}" + (f" ({purpose})" if purpose else "")
        with progress(self.trainer, shown, sum(map(len_of, owns))) as advance:

            def run(step: Step) -> None:
                tap.forget()
                if step.targets is not None or self.sharded:
                    returned = self.forward(step.inputs, tap.forget)
                if step.targets is not None and step.counts:
                    while checks:
                        checks.pop()(returned)
                    use(step)
                advance()

            for own in owns:
                if self.ranks.size > 1 and (self.sharded or own.batches is None):
                    self._in_step(split, self._steps(own, read), run)
                else:
                    self.ranks.all_or_none(partial(_run_all, self._steps(own, read), run))

    def own_loaders_of(self, split: str, loader: Any) -> list[OwnLoader]:
        """The loaders of a pass of this rank over a split."""
        return own_loaders(
            loader,
            self.ranks.rank,
            self.ranks.size,
            divide_batch=self.memory.divide_batch,
            limit=batch_limit(self.trainer, split, loader),
            warn=self.warn,
            stream_limit=stream_limit(self.trainer, split),
        )

    def _steps(self, own: OwnLoader, read: Callable[[Any], tuple[Any, Any]]) -> Iterator[Step]:
        """Of this rank's batches."""
        batches = iter(own.loader)
        for number in count():
            if self.trainer.received_sigterm:
                raise InterruptedPassError
            batch = _END if number >= own.limit else next(batches, _END)
            if batch is _END:
                return
            counts = own.counts(number)
            yield Step(*read(batch), counts, own.indices_of(number) if counts else None)

    def _in_step(self, split: str, steps: Iterator[Step], run: Callable[[Step], None]) -> None:
        """Agree with the other ranks before each step: forward passes wait for them, or who has how many is unknown."""
        held: Step | None = None
        failure: Exception | None = None
        try:
            while True:
                step: Step | None = None
                try:
                    step = next(steps, None) if failure is None else None
                    if self.sharded and held is None and step is None and failure is None:
                        none = f"The {split} loader gave rank {self.ranks.rank} no batch"
                        raise ValueError(f"{none}; a sharded model needs one on each.")
                except Exception as error:
                    failure = error
                if not self.ranks.vote(failure, step is not None):
                    return
                held = step or held
                try:
                    if step is not None:
                        run(step)
                    elif self.sharded and held is not None:
                        run(replace(held, counts=False))
                except Exception as error:
                    failure = error
        finally:
            del failure  # Its traceback would keep it, and so itself.

    def inputs_and_targets(self, raw: Any, split: str) -> tuple[Any, Any]:
        """Of a batch as the split's loader gave it; no targets where it shall not count."""
        return self.read(on_device(self.trainer, self.model, raw, place_of(split)))

    def inputs(self, raw: Any) -> Any:
        """Of a batch that may be inputs alone, in a list of one where a TensorDataset gives them."""
        batch = on_device(self.trainer, self.model, raw, 0)
        alone = batch[0] if isinstance(batch, list | tuple) and len(batch) == 1 and not self.source.batch_fn else batch
        return alone if isinstance(alone, Tensor) else self.read(batch)[0]

    def read(self, batch: Any) -> tuple[Any, Any]:
        """Inputs and targets of a batch on the device."""
        inputs, targets = (self.source.batch_fn or default_batch_fn)(batch)
        return inputs if self.source.forward_fn else by_name(self.model, batch, inputs), targets

    def forward(self, inputs: Any, forget: Callable[[], None] = lambda: None) -> Any:
        """Run the model; with gradients, where its own forward pass needs them.

        Args:
            inputs: The model's.
            forget: Called before the model is run again.
        """
        with torch.set_grad_enabled(self.memory.gradients):
            try:
                return self._forward(inputs)
            except RuntimeError as error:
                if self.memory.gradients or "does not require grad" not in str(error):
                    raise
        self.memory.gradients = True
        self.warn(
            f"{type(self.model).__name__} needs gradients in its forward pass, so looks run it with them, which takes "
            "more memory and time."
        )
        forget()
        with torch.enable_grad():
            return self._forward(inputs)

    def checked_head(self, inputs: Any, targets: Any, layers: Sequence[str] = ()) -> Head:
        """The classifier, found or named, and held to its contract on a batch; see `nc_callbacks.probe.check_head`."""
        given = targets, self.source.head, layers, self.source.ignore_index
        run = explained(self.model, partial(self.forward, forget=_start_over))
        try:
            return check_head(self.model, run, inputs, *given)
        except _NeedsGradientsError:
            return check_head(self.model, self.forward, inputs, *given)

    def _forward(self, inputs: Any) -> Any:
        forward = self.source.forward_fn or call_model
        with self.trainer.strategy.precision_plugin.val_step_context():
            if is_a(self.trainer.strategy, "FSDPStrategy"):
                return _through(self.trainer.strategy.model, self.model, forward, inputs)
            return forward(self.model, inputs)

    @contextmanager
    def standing_still(self, *loaders: Any) -> Iterator[None]:
        """Leave no trace: of the model, of random numbers, of the loaders' data, of the trainer's stage."""
        stage = self.trainer.state.stage
        singles = [single for loader in loaders for single in single_loaders(loader)]
        functions = self.source.batch_fn, self.source.forward_fn
        data = getattr(self.trainer, "datamodule", None)
        with undisturbed(self.model), preserved(*singles, *functions, data), unlogged(self.model):
            # Hooks such as on_after_batch_transfer augment where trainer.training is set.
            self.trainer.state.stage = type(stage)("validate")  # type: ignore[misc]
            try:
                yield
            finally:
                self.trainer.state.stage = stage


class _NeedsGradientsError(Exception):
    """A run has to be made again, and what was seen of it forgotten."""


def _start_over() -> None:
    raise _NeedsGradientsError


@contextmanager
def unlogged(model: LightningModule) -> Iterator[None]:
    """Let nothing that the model logs in its forward pass reach the trainer."""
    held: dict[str, Any] = {name: vars(model)[name] for name in ("log", "log_dict") if name in vars(model)}
    vars(model)["log"] = vars(model)["log_dict"] = _nothing
    try:
        yield
    finally:
        for name in ("log", "log_dict"):
            vars(model).pop(name, None)
        vars(model).update(held)


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _through(wrapper: Any, model: LightningModule, forward: Callable[[LightningModule, Any], Any], inputs: Any) -> Any:
    """Call the model inside its wrapper's forward, which makes sharded parameters whole."""
    own = vars(model).get("forward")

    def restore() -> None:
        if own is None:
            vars(model).pop("forward", None)
        else:
            vars(model)["forward"] = own

    def redirected(inputs: Any) -> Any:
        restore()
        return forward(model, inputs)

    vars(model)["forward"] = redirected
    try:
        return wrapper(inputs)
    finally:
        restore()


def _run_all(steps: Iterator[Step], run: Callable[[Step], None]) -> None:
    for step in steps:
        run(step)
