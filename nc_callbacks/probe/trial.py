"""Running a model on a batch to see which modules run, on what, and what becomes of what they give."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from nc_callbacks.probe.hooks import Hook
from nc_callbacks.probe.linear import Shape, shapes_of
from nc_callbacks.probe.names import distinct_modules, whole
from nc_callbacks.probe.outputs import Found, find_rows, tensors_of
from nc_callbacks.probe.randomness import seeded
from nc_callbacks.state.snapshot import Snapshot


@dataclass(frozen=True)
class Call:
    """One run of a module, as far as shapes go."""

    name: str
    shapes: tuple[Shape, ...]
    """Ways in which it can be a map of rows; none where it is no map of one tensor to one."""
    inputs: tuple[int, ...]
    """Shape of its first tensor; empty where it got none."""

    @property
    def width(self) -> int:
        """Last dimension of its input; 0 where it has none."""
        return self.inputs[-1] if self.inputs else 0


@dataclass(frozen=True)
class Kept:
    """Input and output of one run of a module."""

    inputs: Tensor
    outputs: Tensor


@dataclass(frozen=True)
class Given:
    """What came of random rows in the place of a module's output."""

    name: str
    """Of the module."""
    found: tuple[Shape, Found] | None
    """Where they are in the model's output."""
    changed: bool
    """Whether the model's output has changed with them."""
    inputs: dict[str, Tensor]
    """Of the watched modules that ran."""


class Trial:
    """A model and a batch: `forward` runs the one on the other, several times, each time alike.

    Args:
        model: The model, in eval mode.
        forward: Runs it and returns its output.
    """

    def __init__(self, model: nn.Module, forward: Callable[[], Any]) -> None:
        self.model, self.forward = model, forward
        self.modules = distinct_modules(model)
        self.has_run = False
        self.calls: list[Call] = []
        """In the order in which they ended."""
        self.returned = {place: whole(tensor) for place, tensor in tensors_of(self._seen()).items()}
        """Floating tensors that the model returned; see `tensors_of`."""

    def _seen(self) -> Any:
        def see(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
            shapes = shapes_of(module, tensors[0], output) if _is_map(tensors, output) else ()
            self.calls.append(Call(name, tuple(shapes), tuple(tensors[0].shape) if tensors else ()))

        return self._run(self.modules, see)

    @property
    def ran(self) -> list[str]:
        """Names of the modules that ran."""
        return list(dict.fromkeys(call.name for call in self.calls))

    def own_name(self, module: nn.Module) -> str:
        """The first of a module's names."""
        return next(name for name, other in self.modules.items() if other is module)

    def call(self, name: str) -> Call | None:
        """The run of a module, if it ran once."""
        calls = [call for call in self.calls if call.name == name]
        return calls[0] if len(calls) == 1 else None

    def kept(self, names: Iterable[str]) -> dict[str, Kept]:
        """Inputs and outputs of modules that ran once on one tensor."""
        inputs: dict[str, Tensor] = {}
        outputs: dict[str, Tensor] = {}

        def keep(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            outputs[name] = whole(output)

        # What the model returned is compared with what was kept of the same run.
        self.returned = {place: whole(x) for place, x in tensors_of(self._run(names, keep, inputs)).items()}
        return {name: Kept(inputs[name], output) for name, output in outputs.items()}

    def moved(self, outer: str, parameters: Sequence[Tensor], names: Iterable[str]) -> dict[str, Kept]:
        """Inputs and outputs of modules that ran once, with parameters changed when a module begins to run."""
        generator = torch.Generator().manual_seed(2)

        def move(module: nn.Module, args: Any, kwargs: Any) -> None:
            for parameter in parameters:
                # Away from zero, where adapters start, and no scale changes its sign.
                sign = torch.where(parameter.detach() < 0, -1.0, 1.0).to(parameter.dtype)
                step = torch.rand(parameter.shape, generator=generator, device="cpu").to(
                    parameter.device, parameter.dtype
                )
                parameter.data.add_(sign * step)

        remove = hook_before(self.modules[outer], move)
        before = self.returned
        try:
            return self.kept(names)
        finally:
            remove()
            self.returned = before

    def repeats(self) -> bool:
        """Whether one more run returns what the last did.

        It does not where noise comes from a generator that is neither the model's nor a global one.
        """
        again = {place: whole(tensor) for place, tensor in tensors_of(self._forward_alike()).items()}
        return same_tensors(self.returned, again)

    def give(self, name: str, watched: Iterable[str] = ()) -> Given:
        """Run the model with random rows in the place of what a module gives, and see where they come out."""
        output, given, inputs = self._run_with(name, watched, _random_like)
        call = self.call(name)
        assert call is not None
        rows = whole(given)
        returned = {place: whole(tensor) for place, tensor in tensors_of(output).items()}
        found = [(shape, find_rows(shape.outputs(rows), returned)) for shape in call.shapes]
        changed = not same_tensors(self.returned, returned)
        return Given(name, next(((shape, rows) for shape, rows in found if rows is not None), None), changed, inputs)

    def reached(self, name: str, watched: Iterable[str] = ()) -> tuple[list[str], bool]:
        """The watched modules whose input a module's output is part of, and whether the model's output has it too.

        Found out in a single run, by NaN in the place of what the module gives.
        """
        output, _, inputs = self._run_with(name, watched, _nan_like)
        returned = any(bool(tensor.isnan().any()) for tensor in tensors_of(output).values())
        return [other for other, x in inputs.items() if other != name and bool(x.isnan().any())], returned

    def uses(self, tensor: Tensor) -> bool:
        """Whether a parameter or buffer is part of the model's output, found out by NaN in its place."""
        held, state = tensor.detach().clone(), Snapshot(self.model)
        tensor.data.fill_(torch.nan)
        try:
            # What modules have computed of it and keep in eval mode, they drop when they are trained.
            self.model.train()
            self.model.eval()
            output = self._forward_alike()
        finally:
            state.put_back()
            tensor.data.copy_(held)
        return any(bool(part.isnan().any()) for part in tensors_of(output).values())

    def _run_with(
        self, name: str, watched: Iterable[str], make: Callable[[Tensor], Tensor]
    ) -> tuple[Any, Tensor, dict[str, Tensor]]:
        """Run the model with something else in the place of what a module gives; inputs of the watched modules."""
        inputs: dict[str, Tensor] = {}
        made: list[Tensor] = []

        def replace(called: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Tensor | None:
            if called != name:
                return None
            made.append(make(output))
            # A forward pass that needs gradients keeps its graph.
            return made[0] + (output - output.detach()) if output.requires_grad else made[0]

        output = self._run([*watched, name], replace, inputs)
        return output, made[0], inputs

    def _run(self, names: Iterable[str], after: Callable[..., Any], inputs: dict[str, Tensor] | None = None) -> Any:
        """Run the model with hooks after modules; `inputs`, where given, is filled before they run."""
        with ExitStack() as hooks:
            for name in dict.fromkeys(names):

                def note(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                    inputs[name] = whole(next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)))  # type: ignore[index]

                def see(module: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> Any:
                    return after(name, module, args, kwargs, output)

                if inputs is not None:
                    hooks.callback(hook_before(self.modules[name], note))
                hooks.callback(hook_after(self.modules[name], see))
            return self._forward_alike()

    def _forward_alike(self) -> Any:
        # The first run makes what a model makes when it first runs; the others start where it ended, whatever they
        # change: counters, generators and hidden states of the model's own.
        state = Snapshot(self.model) if self.has_run else None
        try:
            with seeded(0):
                return self.forward()
        finally:
            self.has_run = True
            if state is not None:
                state.put_back()


def _is_map(inputs: list[Tensor], output: Any) -> bool:
    """Whether a module made one tensor of floating point of one."""
    tensors = [*inputs, output]
    return len(tensors) == 2 and all(isinstance(x, Tensor) and x.ndim and x.is_floating_point() for x in tensors)


def hook_before(module: nn.Module, hook: Callable[..., Any]) -> Callable[[], None]:
    """Call (module, args, kwargs) before a module runs; returns what takes the hook off."""
    # A scripted module refuses its own method, and runs such hooks all the same.
    return nn.Module.register_forward_pre_hook(module, Hook(module, hook), with_kwargs=True).remove


def hook_after(module: nn.Module, hook: Callable[..., Any]) -> Callable[[], None]:
    """Call (module, args, kwargs, output) after a module ran; returns what takes the hook off."""
    return nn.Module.register_forward_hook(module, Hook(module, hook), with_kwargs=True).remove


def same_tensors(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether tensors at the same places are equal, NaN to NaN."""
    return one.keys() == other.keys() and all(
        torch.equal(tensor.nan_to_num(), other[place].nan_to_num()) for place, tensor in one.items()
    )


def _nan_like(output: Tensor) -> Tensor:
    return torch.full_like(output, torch.nan)


def _random_like(output: Tensor) -> Tensor:
    values = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), device="cpu")
    values = values.to(output.device, output.dtype)
    if isinstance(output, DTensor):
        return distribute_tensor(values, output.device_mesh, output.placements)
    return values
