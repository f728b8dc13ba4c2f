"""Gathering from the forward passes that training and validation make anyway."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from nc_callbacks.data.loader import distinct_samples
from nc_callbacks.engine.look import Look
from nc_callbacks.engine.observation import Observation, Observations
from nc_callbacks.engine.split import SplitStatistics
from nc_callbacks.engine.trainer import by_split
from nc_callbacks.metrics import LogKey
from nc_callbacks.probe import Batch, Tap, default_batch_fn, named_modules

_WAY_OUT = 'With mode="epoch_end" the features come from a pass of its own, which runs the model eagerly and once.'


class Online:
    """Statistics of an epoch's own forward passes; no pass is added, but one batch runs again at the end.

    The hooks are on the model from `start` to `stop`, and a batch is taken from them when the trainer is through with
    it, so that gradient accumulation counts each once; what activation checkpointing repeats in the backward pass is
    not seen.

    Args:
        look: Has found the classifier.
        warn: Called with what a warning is about, and its text.
    """

    def __init__(self, look: Look, warn: Callable[[str, str], None]) -> None:
        refuse_compiled(look.model, [look.head, *look.needs.layers])
        self.look = look
        self.warn = warn
        self.tap: Tap | None = None
        self.gathered: dict[str, SplitStatistics] = {}
        self.last: Any = None
        """The last training batch that was taken."""
        self.proven = False

    def start(self) -> None:
        """Begin an epoch."""
        self.tap = self.look.tap()
        self.tap.__enter__()
        for held in self.gathered.values():
            held.release()
        self.gathered = {}

    def stop(self) -> None:
        """Take the hooks off the model."""
        if self.tap is not None:
            self.tap.__exit__()
            self.tap = None

    def restart(self, split: str) -> None:
        """Forget a split's batches: its loaders are gone through from the start."""
        for label in [label for label in self.gathered if LogKey.at(label).split == split]:
            self.gathered.pop(label).release()

    def begin_batch(self) -> None:
        """Forget what others ran since the last batch."""
        if self.tap is not None:
            self.tap.forget()

    def end_batch(self, split: str, batch: Any, loader: Any, number: int, skipped: bool = False) -> None:
        """Add the batch that the trainer has just run.

        Args:
            split: Where to count it.
            batch: As the step got it.
            loader: Where it comes from.
            number: Which of the loader's batches it is.
            skipped: The step gave nothing, perhaps before it ran the model.

        Raises:
            ValueError: The first batch cannot be read; later ones are left out with a warning.
        """
        if self.tap is None:
            return
        if skipped and not self.tap.ran:
            return
        try:
            taken = self._taken(self.tap, batch, loader, number)
            if taken is not None:
                if split not in self.gathered:
                    self.gathered[split] = self.look.statistics(self.tap, split)
                self.gathered[split].update(taken)
                self.last = batch if split == "train" else self.last
        except Exception as error:
            if not self.proven:
                raise ValueError(f"{error} {_WAY_OUT}") from error
            self.warn("online batch", f'A {split} batch is left out of mode="online": {error!r}')
        else:
            self.proven = True

    def _taken(self, tap: Tap, batch: Any, loader: Any, number: int) -> Batch | None:
        targets = (self.look.source.batch_fn or default_batch_fn)(batch)[1]
        if targets is None:
            return None
        taken, ranks = tap.read(targets), self.look.ranks
        samples = targets.shape[0]
        distinct = distinct_samples(loader, number, samples, ranks.rank, ranks.size)
        if distinct is None:
            self.warn(
                "online repeats",
                'In mode="online" samples that the sampler repeats to even the ranks out are counted again, for '
                f"{type(loader).__name__} does not say which they are. {_WAY_OUT}",
            )
        if distinct is None or distinct == samples:
            return taken
        rows = distinct * len(taken.targets) // samples
        return Batch({name: x[:rows] for name, x in taken.features.items()}, taken.outputs[:rows], taken.targets[:rows])

    def finish(self) -> Observations:
        """End the epoch: what it showed, by split and layer.

        Nothing where training resumed inside the epoch.
        """
        resumed = self.tap is None
        self.stop()
        look = self.look
        with look.standing_still(dict), look.tap() as tap:
            held = look.ranks.all_or_none(lambda: self._held(tap))
            if "train" not in held:
                self._say_why_nothing(resumed)
                return {}
            look.leave_out_weight_unless(look.ranks.all_or_none(lambda: self._stays_classifier(tap)), tap)
            return self._observed(tap, held)

    def _stays_classifier(self, tap: Tap) -> bool:
        """Run one batch again as validation would: see `Look.stays_classifier`."""
        batch, self.last, passes = self.last, None, self.look.passes
        # What a sharded model returns is not whole.
        if batch is None or passes.sharded:
            return True
        returned = passes.forward(passes.read(batch)[0], tap.forget)
        affine = self.look.stays_classifier(tap, returned)
        tap.forget()
        return affine

    def _held(self, tap: Tap) -> dict[str, SplitStatistics]:
        """Statistics by split; a rank may have had no batch of a split that the others have."""
        look = self.look
        loaders = look.trainer.val_dataloaders
        splits = ["train", *by_split("val", [] if loaders is None else loaders)]
        gathered, self.gathered = self.gathered, {}
        seen = [split for split in splits if look.ranks.any(split in gathered)]
        return {split: gathered.get(split) or look.statistics(tap, split) for split in seen}

    def _say_why_nothing(self, resumed: bool) -> None:
        if self.look.ranks.any(resumed):
            self.warn(
                "online resumed",
                f'Training resumed inside epoch {self.look.trainer.current_epoch + 1}, which mode="online" leaves out: '
                "it has not seen all of it.",
            )

    def _observed(self, tap: Tap, held: dict[str, SplitStatistics]) -> Observations:
        look = self.look
        means = look.decisions(held["train"], tap)
        ood_means = look.ood_means(tap, means)
        found: dict[str, dict[str, Observation]] = {}
        for split, statistics in held.items():
            decisions = None
            # Every rank has to have all its features.
            if means is not None and statistics.cached:
                decisions = means.restarted()
                look.ranks.all_or_none(partial(statistics.decide, decisions))
            elif means is not None:
                self._say_what_is_missing(split)
            statistics.release()
            found[split] = statistics.observed(split, tap, decisions, ood_means)
        return found

    def _say_what_is_missing(self, split: str) -> None:
        self.warn(
            "online cache",
            f"The features of the {split} split do not fit in feature_cache, so that nc4, ncc_accuracy and "
            f"accuracy_centred_means are left out. Give feature_cache more. {_WAY_OUT}",
        )


def refuse_compiled(model: nn.Module, names: list[str]) -> None:
    """Raise if one of the named modules runs inside compiled code, where hooks never fire.

    Raises:
        ValueError: It does.
    """
    modules = named_modules(model)
    for name in names:
        for holder_name, holder in [("", model), *model.named_modules()]:
            if _is_compiled(holder) and any(part is modules.get(name) for part in holder.modules()):
                raise ValueError(
                    f'mode="online" cannot see {name!r}: {holder_name or type(model).__name__} is compiled, and hooks '
                    f"inside compiled code never run. {_WAY_OUT} Or compile a part that does not hold {name!r}."
                )


def _is_compiled(module: nn.Module) -> bool:
    return (
        hasattr(module, "_orig_mod")
        or getattr(module, "_compiled_call_impl", None) is not None
        or getattr(module, "_compiler_ctx", None) is not None
    )
