"""The contract that a classifier keeps on the batch that is tried before anything is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from nc_callbacks.probe.head import Head
from nc_callbacks.probe.linear import Shape, affine_map, is_affine, is_affine_nearby
from nc_callbacks.probe.names import (
    candidates,
    check_names,
    inside_script,
    listed,
    named_modules,
    refuse_single_output,
    unsharded,
)
from nc_callbacks.probe.outputs import Found, tensors_of
from nc_callbacks.probe.positions import Positions, sample_dims, size_of, without_last
from nc_callbacks.probe.search import Match, Search, fitting_targets
from nc_callbacks.probe.trial import Kept, Trial
from nc_callbacks.probe.unused import refuse_features

_LOGITS = "a function (module, inputs) that returns the logits"


def check_head(
    model: nn.Module,
    forward: Callable[[Any], Any],
    inputs: Any,
    targets: Any = None,
    head: str | None = None,
    layers: Sequence[str] = (),
    ignore_index: int | None = -100,
) -> Head:
    """The classifier of a model, found or named, and held to its contract on one batch.

    Its output has to be what the model returns (alone, in a tuple, a mapping or an object, rescaled or behind a
    softmax, log-softmax or sigmoid), which is found out by putting random rows in its place; of several such modules it
    is the one that the others come before. Its rows have to be those of the targets. Whether it is an affine map of its
    input is found out too: where it is not, it has no weight.

    Args:
        model: In eval mode; run some times.
        forward: From inputs to the model's output.
        inputs: Of the batch.
        targets: Of the batch, where there are any.
        head: Dotted name of the classifier, where it is given.
        layers: Dotted names of further modules whose input is watched.
        ignore_index: Positions with this target do not count.

    Raises:
        ValueError: There is no such module, or none, or several that cannot be told apart: lists them.
    """
    check_names(model, head, layers)
    trial = Trial(model, partial(forward, inputs))
    search = Search(model, trial)
    found: Found | None
    if head is None:
        match = found_match(model, search, targets)
        head, shape, found = match.name, match.shape, match.found
    else:
        shape, found = _named(model, search, head)
    if shape.num_classes < 2:
        refuse_single_output(head)
    kept = search.keep(trial.own_name(named_modules(model)[head]))

    def without_one() -> Tensor:
        assert found is not None
        return tensors_of(forward(without_last(inputs, size_of(inputs))))[found.place]

    positions = Positions(head, shape.outputs(kept.outputs), found, trial.returned, without_one)
    watched = {layer: named_modules(model)[layer] for layer in layers}
    calls = {layer: trial.call(trial.own_name(module)) for layer, module in watched.items()}
    shapes = {layer: call.inputs for layer, call in calls.items() if call is not None}
    return Head(
        head,
        shape,
        order=positions.order(targets, ignore_index),
        affine=_holds(model, head, shape, kept),
        found=found,
        size=_magnitude(kept.inputs),
        dtype=kept.inputs.dtype,
        sample_dims=sample_dims(watched, shapes, forward, inputs),
    )


def _holds(model: nn.Module, head: str, shape: Shape, kept: Kept) -> bool:
    """Whether the classifier is an affine map of its input on the batch."""
    module = named_modules(model)[head]
    with unsharded(model):
        weight, bias = affine_map(module, shape, _magnitude(kept.inputs), kept.inputs.dtype)
        inputs, outputs = shape.inputs(kept.inputs).flatten(0, -2), shape.outputs(kept.outputs).flatten(0, -2)
        return is_affine(module, weight, bias, inputs, outputs) and is_affine_nearby(
            module, shape, weight, bias, inputs
        )


def find_head(model: nn.Module, forward: Callable[[], Any], targets: Any = None) -> str:
    """Dotted name of the classifier: the module whose output is what the model returns; see `check_head`.

    Args:
        model: In eval mode.
        forward: Runs it on one batch and returns its output; called some times.
        targets: Of the batch, where they are known; they tell candidates with more or fewer classes apart.

    Raises:
        ValueError: No candidate, or several that cannot be told apart: lists them.
    """
    return found_match(model, Search(model, Trial(model, forward)), targets).name


def found_match(model: nn.Module, search: Search, targets: Any) -> Match:
    """The one module whose output the model returns.

    Raises:
        ValueError: None, or several that cannot be told apart; or what the model returns are features.
    """
    trial = search.trial
    if not trial.returned:
        raise ValueError(
            "The model's forward returns no logits to tell the classifier by. Pass head=..., one of "
            f"{listed(_run_candidates(model, trial))}, and forward_fn=... if forward does not run it."
        )
    matches = fitting_targets(search.matches, targets)
    if len(matches) > 1:
        names = listed(match.name for match in matches)
        raise ValueError(f"Several modules can be the classifier: {names}. Pass head=..., one of them.")
    if not matches:
        _refuse_unmatched(model, search)
    [match] = matches
    if after := search.downstream(match.given, search.takers(match.name)):
        raise ValueError(
            f"The model returns what {match.name!r} gives, on which {listed(after)} runs: these are features, and no "
            f"logits. Pass forward_fn=..., {_LOGITS}, or head={match.name!r} if that is the classifier."
        )
    refuse_features(model, trial, match, targets)
    _refuse_network(model, search, match)
    return match


def _refuse_network(model: nn.Module, search: Search, match: Match) -> None:
    """Raise where what gives the model's output is no classifier, but a network with one somewhere inside."""
    inside = search.after_other_layers(match.name)
    if not inside or _holds(model, match.name, match.shape, search.keep(match.name)):
        return
    several = [name for name in inside if search.trial.call(name) is None]
    fitting = [name for name in search.fitting if name in inside]
    named = f"head=..., one of {listed(fitting)}, " if fitting else ""
    ran = f" ({listed(several)} ran several times)" if several else ""
    raise ValueError(
        f"No classifier found: the model returns what {match.name!r} gives as a whole, a network of several layers, "
        f"and what no layer in it gives alone{ran}. Pass {named}forward_fn=..., {_LOGITS} of one layer that runs once, "
        f"or head={match.name!r}, whose input counts as features."
    )


def _refuse_unmatched(model: nn.Module, search: Search) -> None:
    trial = search.trial
    if len(search.fitting) > 1:
        raise ValueError(
            f"Several modules can be the classifier: {listed(search.fitting)}. Pass head=..., one of them; what the "
            f"model returns (shape {_shapes(trial)}) is the output of none alone."
        )
    _refuse_single_logit(trial)
    if search.fitting:
        [name] = search.fitting
        raise ValueError(
            f"No classifier found: {name!r} gives as many outputs as the model, which returns something else (shape "
            f"{_shapes(trial)}). Pass head={name!r} if its input and output are the features and the logits, or "
            f"forward_fn=..., {_LOGITS}."
        )
    wide = next(iter(trial.returned.values()))
    raise ValueError(
        f"No classifier found: the model's output has shape {_shapes(trial)}, and no fully connected module gives it "
        f"with {wide.shape[-1] if wide.ndim else 1} weight rows. Modules that ran: "
        f"{listed(_run_candidates(model, trial))}. Pass head=..., or forward_fn=..., {_LOGITS}; a classifier that is "
        "no module of its own, such as a matrix in a buffer or in the loss, has to become one that forward runs, and "
        "one that runs several times takes a forward_fn that runs it once."
    )


def _refuse_single_logit(trial: Trial) -> None:
    single = all(tensor.ndim < 2 or tensor.shape[1:].numel() == 1 for tensor in trial.returned.values())
    last = next((c for c in reversed(trial.calls) if any(shape.num_classes == 1 for shape in c.shapes)), None)
    if single and last is not None:
        refuse_single_output(last.name)


def _shapes(trial: Trial) -> str:
    return ", ".join(str(tuple(tensor.shape)) for tensor in list(trial.returned.values())[:4])


def _run_candidates(model: nn.Module, trial: Trial) -> list[str]:
    return [name for name in candidates(model) if name in trial.ran]


def _named(model: nn.Module, search: Search, head: str) -> tuple[Shape, Found | None]:
    """How the named module gives rows, and where they are in the model's output."""
    trial = search.trial
    known = trial.own_name(named_modules(model)[head])
    call, runs = trial.call(known), sum(call.name == known for call in trial.calls)
    if call is None:
        raise ValueError(
            f"head {head!r} ran {runs} times in one forward pass; it is watched where it runs once. Modules that ran: "
            f"{listed(_run_candidates(model, trial))}. Name another module, or pass forward_fn=..., a function "
            f"(module, inputs) that runs it once{inside_script(model, head)}."
        )
    if not call.shapes:
        raise ValueError(
            f"head {head!r} ({type(trial.modules[known]).__name__}) gives no row of outputs for a row of inputs, as a "
            f"classifier does. Modules that ran: {listed(_run_candidates(model, trial))}."
        )
    given = search.give(known)
    after = search.downstream(given, [match.name for match in search.matches if match.name != known])
    if after:
        raise ValueError(
            f"head {head!r} gives features: {listed(after)} runs on them, and its output is what the model returns. "
            f"Pass head={after[-1]!r}, or watch {head!r} with layers=[...]."
        )
    if given.found is not None:
        return given.found
    shape = call.shapes[0]
    if trial.returned and not (given.changed and any(shape.num_classes in t.shape for t in trial.returned.values())):
        others = [match.name for match in search.matches if match.name != known]
        raise ValueError(
            f"The output of head {head!r} is not in what the model returns (shape {_shapes(trial)}). Pass "
            f"{f'head=..., one of {listed(others)}, or ' if others else ''}forward_fn=..., {_LOGITS} of {head!r}."
        )
    # It is a part of the output, such as a sum of several classifiers', and its name says that it is meant.
    return shape, None


def _magnitude(x: Tensor) -> float:
    """The power of two below the largest number."""
    largest = float(x.abs().max()) if x.numel() else 0.0
    return 2.0 ** math.floor(math.log2(largest)) if 0 < largest < math.inf else 1.0
