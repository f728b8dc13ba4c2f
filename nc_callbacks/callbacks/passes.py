"""Passes over a trainer's data: batches of each rank, in step, through the model standing still."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from nc_callbacks.callbacks.observation import Source
from nc_callbacks.callbacks.progress import progress
from nc_callbacks.callbacks.ranks import Ranks
from nc_callbacks.callbacks.trainers import batch_limit, is_a, is_sharded
from nc_callbacks.loader import OwnLoader, own_loaders, single_loaders
from nc_callbacks.preserve import preserved
from nc_callbacks.probe import default_batch_fn, undisturbed

_SMALLEST_SHARE = 64
"""How many times smaller than the loader's a look's batches become before it gives up."""

_END = object()
"""What a loader gives when it is through."""


class InterruptedPassError(Exception):
    """The process is asked to end."""


class FailedElsewhereError(RuntimeError):
    """The pass failed on another rank."""

    def __init__(self, out_of_memory: bool) -> None:
        super().__init__("another rank ran out of memory" if out_of_memory else "it failed on another rank")
        self.out_of_memory = out_of_memory


@dataclass
class Memory:
    """What the looks of a trainer may use; less after one that ran out of memory."""

    cache: bool = True
    divide_batch: int = 1

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
class Raw:
    """A batch as the loader gave it."""

    batch: Any
    counts: bool
    indices: Sequence[int] | None


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
        self.ranks = Ranks.of(self.trainer)

    def each(self, split: str, loader: Any, use: Callable[[Raw], None], purpose: str = "") -> None:
        """Call `use` with all batches of this rank; where that fails on one rank, it fails on all."""
        failure: Exception | None = None
        try:
            for raw in self._raw_batches(split, loader, purpose):
                use(raw)
        except Exception as error:
            failure = error
        fine, out_of_memory, failed = 0, 1, 2
        mine = fine if failure is None else out_of_memory if is_out_of_memory(failure) else failed
        worst = self.ranks.most(mine)
        if failure is not None and mine == worst:
            raise failure
        if worst != fine:
            raise FailedElsewhereError(worst == out_of_memory)

    def _raw_batches(self, split: str, loader: Any, purpose: str) -> Iterator[Raw]:
        owns = own_loaders(
            loader,
            self.ranks.rank,
            self.ranks.size,
            divide_batch=self.memory.divide_batch,
            limit=batch_limit(self.trainer, split, loader),
            warn=self.warn,
        )
        shown = f"Neural collapse: {split}" + (f" ({purpose})" if purpose else "")
        with progress(self.trainer, shown, sum(map(_length, owns))) as advance:
            for own in owns:
                for raw in self._in_step(own):
                    yield raw
                    advance()

    def _in_step(self, own: OwnLoader) -> Iterator[Raw]:
        """This rank's batches; all ranks have equally many, some of which may not count."""
        sharded, unknown = is_sharded(self.trainer), own.batches is None and self.ranks.size > 1
        batches, held, number = iter(own.loader), None, 0
        failure: Exception | None = None
        while number < own.limit:
            if self.trainer.received_sigterm and not sharded and not unknown:
                raise InterruptedPassError
            try:
                batch = next(batches, _END)
            except Exception as error:
                if not sharded or held is None:
                    raise
                # The others wait for this rank's forward passes.
                failure, batch, batches = error, _END, iter(())
            more = self.ranks.most(int(batch is not _END)) if unknown else batch is not _END
            if not more and (failure is None or unknown or number >= len(own)):
                break
            counts = batch is not _END and own.counts(number)
            held = held if batch is _END else batch
            if held is not None:
                yield Raw(held, counts, own.indices_of(number) if counts else None)
            number += 1
        if failure is not None:
            raise failure

    def inputs_and_targets(self, raw: Any) -> tuple[Any, Any]:
        """Of a batch as the loader gave it; no targets where it shall not count."""
        return (self.source.batch_fn or default_batch_fn)(self._on_device(raw))

    def inputs(self, raw: Any) -> Any:
        """Of a batch that may be inputs alone."""
        batch = self._on_device(raw)
        return batch if isinstance(batch, Tensor) else (self.source.batch_fn or default_batch_fn)(batch)[0]

    def _on_device(self, raw: Any) -> Any:
        strategy = self.trainer.strategy
        batch = strategy.precision_plugin.convert_input(raw)
        batch = self.model._on_before_batch_transfer(batch, dataloader_idx=0)
        return strategy.batch_to_device(batch, dataloader_idx=0)

    def forward(self, inputs: Any) -> Any:
        """Run the model."""
        forward = self.source.forward_fn or _call
        with self.trainer.strategy.precision_plugin.val_step_context():
            if is_a(self.trainer.strategy, "FSDPStrategy"):
                return _through(self.trainer.strategy.model, self.model, forward, inputs)
            return forward(self.model, inputs)

    @contextmanager
    def standing_still(self, *loaders: Any) -> Iterator[None]:
        """Leave no trace: of the model, of random numbers, of the loaders' data, of the trainer's stage."""
        stage = self.trainer.state.stage
        singles = [single for loader in loaders for single in single_loaders(loader)]
        data = [getattr(single, "dataset", single) for single in singles]
        functions = [getattr(single, "collate_fn", None) for single in singles]
        with undisturbed(self.model), preserved(*data, *functions, self.source.batch_fn, self.source.forward_fn):
            # Hooks such as on_after_batch_transfer augment where trainer.training is set.
            self.trainer.state.stage = type(stage)("validate")  # type: ignore[misc]
            try:
                yield
            finally:
                self.trainer.state.stage = stage


def _call(model: LightningModule, inputs: Any) -> Any:
    return model(inputs)


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


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, here or on another rank."""
    if isinstance(error, FailedElsewhereError):
        return error.out_of_memory
    # On the CPU torch raises a RuntimeError.
    told = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return told or isinstance(error, torch.OutOfMemoryError | MemoryError)


def _length(own: OwnLoader) -> float:
    try:
        return len(own)
    except TypeError:
        return math.inf
