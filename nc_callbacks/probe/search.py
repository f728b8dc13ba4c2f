"""Which module's output is what the model returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from nc_callbacks.probe.linear import Shape
from nc_callbacks.probe.names import distinct_modules, unsharded
from nc_callbacks.probe.outputs import Found, find_rows, logits_of
from nc_callbacks.probe.targets import class_indices
from nc_callbacks.probe.trial import Given, Kept, Trial, same_tensors
from nc_callbacks.state.limits import is_shard


@dataclass(frozen=True)
class Match:
    """A module whose output is in the model's."""

    name: str
    shape: Shape
    found: Found
    given: Given


class Search:
    """Candidates of a trial, and those whose output the model returns.

    Args:
        model: The model.
        trial: Of it.
    """

    def __init__(self, model: nn.Module, trial: Trial) -> None:
        self.trial = trial
        with unsharded(model):
            modules = distinct_modules(model)
            self.with_matrix = {name for name, module in modules.items() if _has_matrix(module)}
            self.with_parameters = {name for name, module in modules.items() if list(module.parameters(recurse=False))}
        once = [call for call in trial.calls if trial.call(call.name) is call and call.name in self.with_matrix]
        # Samples come first, where there are several.
        sizes = {size for tensor in logits_of(trial.returned).values() for size in tensor.shape[tensor.ndim > 1 :]}
        self.fitting = [call.name for call in once if any(shape.num_classes in sizes for shape in call.shapes)]
        """Modules that ran once and give as many outputs as the model."""
        first = trial.returned
        self.kept: dict[str, Kept] = trial.kept(self.fitting)
        self.steady = same_tensors(first, trial.returned) or trial.repeats()
        """Whether runs can be compared with each other."""
        self._given: dict[str, Given] = {}
        self.similar = [name for name in self.fitting if self._is_returned(name)]
        self.matches = self._matches()

    def _is_returned(self, name: str) -> bool:
        call, output = self.trial.call(name), self.kept[name].outputs
        assert call is not None
        logits = logits_of(self.trial.returned)
        return any(find_rows(shape.outputs(output), logits) is not None for shape in call.shapes)

    def _matches(self) -> list[Match]:
        """Modules whose output the model returns, without those that others of them come after or are inside of."""
        all_given = {name: self.give(name) for name in self.similar}
        found = [Match(name, *given.found, given) for name, given in all_given.items() if given.found is not None]
        logits = logits_of(self.trial.returned)
        found = [match for match in found if match.found.place in logits]
        found = [match for match in found if not self.downstream(match.given, [other.name for other in found])]
        return [match for match in found if not any(self._gives_way(match.name, other.name) for other in found)]

    def give(self, name: str) -> Given:
        """What becomes of random rows in the place of a module's output."""
        if name not in self._given:
            given = self.trial.give(name, [*self.similar, *self.takers(name)])
            self._given[name] = given if self.steady else replace(given, changed=self.trial.reached(name)[1])
        return self._given[name]

    def takers(self, name: str) -> list[str]:
        """Modules with a matrix that ran after that one, on rows as wide as its output."""
        names = [call.name for call in self.trial.calls]
        call = self.trial.call(name)
        assert call is not None
        widths = {shape.num_classes for shape in call.shapes}
        after = self.trial.calls[names.index(name) + 1 :]
        once = (later for later in after if later.shapes and self.trial.call(later.name) is later)
        return [later.name for later in once if later.width in widths and later.name in self.with_matrix]

    def downstream(self, given: Given, names: Sequence[str]) -> list[str]:
        """Those of the named modules whose input has changed with what was given."""
        others = [name for name in names if name in given.inputs]
        if not self.steady:
            return self.trial.reached(given.name, others)[0] if others else []
        return [name for name in others if not torch.equal(self.keep(name).inputs, given.inputs[name])]

    def keep(self, name: str) -> Kept:
        """What a module got and gave."""
        if name not in self.kept:
            self.kept |= self.trial.kept([name])
        return self.kept[name]

    def after_other_layers(self, name: str) -> list[str]:
        """Layers within a module that do not all work on the module's own input, as a network's do not."""
        layers = [
            n for n in self.trial.ran if n.startswith(name + ".") and n in self.with_matrix & self.with_parameters
        ]
        calls = [self.trial.call(layer) for layer in layers]
        if all(call is not None and call.shapes for call in calls):
            kept = self.trial.kept([name, *layers])
            own = kept[name].inputs
            if all(_equal(kept[layer].inputs, own) for layer in layers):
                return []
        return layers

    def _gives_way(self, name: str, other: str) -> bool:
        """Whether of two nested modules the other is the classifier.

        The inner one is, unless the outer one adds something to it, as low-rank adapters do.
        """
        if other.startswith(name + "."):
            return not self._adds(name, other)
        return name.startswith(other + ".") and self._adds(other, name)

    def _adds(self, outer: str, inner: str) -> bool:
        """Whether parameters of the outer module, beside those of the inner, make its output another one."""
        if not torch.equal(self.kept[outer].inputs, self.kept[inner].inputs):
            return False
        modules = self.trial.modules
        own = {id(parameter) for parameter in modules[inner].parameters()}
        beside = [p for p in modules[outer].parameters() if id(p) not in own and not is_lazy(p)]
        if not beside or any(map(is_shard, self.trial.model.modules())):
            # Shards cannot be moved and put back.
            return bool(beside)
        moved = self.trial.moved(outer, beside, [outer, inner])
        call = self.trial.call(inner)
        assert call is not None
        rows = call.shapes[0].outputs(moved[inner].outputs)
        return find_rows(rows, {"": moved[outer].outputs}) is None


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _has_matrix(module: nn.Module) -> bool:
    """Whether a module holds a matrix, as what maps vectors to vectors does."""
    tensors = (*module.parameters(), *module.buffers())
    return any(is_lazy(t) or t.ndim >= 2 for t in tensors) or "packed_params" in " ".join(module.state_dict())


def fitting_targets(matches: Sequence[Match], targets: Any) -> list[Match]:
    """The matches with as many classes as the targets speak of; all of them, where that leaves none.

    Where several are left, the one with exactly as many classes as were seen.
    """
    if len(matches) < 2 or not isinstance(targets, Tensor):
        return list(matches)
    seen = {match.name: classes_seen(targets, match) for match in matches}
    fitting = [match for match in matches if 0 < seen[match.name] <= match.shape.num_classes] or list(matches)
    exact = [match for match in fitting if seen[match.name] == match.shape.num_classes]
    return exact if len(exact) == 1 else fitting


def classes_seen(targets: Any, match: Match) -> int:
    """One more than the largest class index of targets that a classifier can have; 0 where it cannot have them."""
    k = match.shape.num_classes
    try:
        indices = class_indices(targets, k, sequence=getattr(targets, "shape", None) == match.found.positions)
    except ValueError:
        return 0
    return int(indices.max()) + 1 if indices.numel() else 0
