"""Finding a model's classifier, capturing what goes into it, and running it without leaving a trace."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

INPUT_KEYS = ("image", "x", "input")
TARGET_KEYS = ("label", "y", "target")

Pool = Literal["mean"] | None


@dataclass(frozen=True)
class Batch:
    """What one forward pass showed: a row a sample."""

    features: dict[str, Float[Tensor, "n p"]]
    """Input of each watched module, by its dotted name."""
    outputs: Float[Tensor, "n k"]
    """Output of the classifier, before any softmax."""
    targets: Int[Tensor, " n"]
    """Class indices."""


def default_batch_fn(batch: Any) -> tuple[Any, Any]:
    """Inputs and targets of a batch: its first two items, or of a dict the items under the usual names.

    These are ``image``, ``x`` or ``input``, and ``label``, ``y`` or ``target``.

    Raises:
        ValueError: The batch is neither.
    """
    if isinstance(batch, Mapping):
        inputs = next((key for key in INPUT_KEYS if key in batch), None)
        targets = next((key for key in TARGET_KEYS if key in batch), None)
        if inputs is not None and targets is not None:
            return batch[inputs], batch[targets]
        found = f"a dict with the keys {sorted(map(str, batch))}"
    elif isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) >= 2:
        return batch[0], batch[1]
    else:
        found = f"a {type(batch).__name__}" + (f" of length {len(batch)}" if isinstance(batch, Sequence) else "")
    raise ValueError(
        f"Expected batches that start with (inputs, targets), or dicts with one of {INPUT_KEYS} and one of "
        f"{TARGET_KEYS}; got {found}. Pass batch_fn=..., a function from a batch to (inputs, targets)."
    )


def class_indices(targets: Any, num_classes: int) -> Int[Tensor, " *n"]:
    """Targets as class indices: one-hot or soft labels (last dimension k) become their argmax.

    Raises:
        ValueError: The targets are no tensor, or floating point without a last dimension of k.
    """
    if not isinstance(targets, Tensor):
        raise ValueError(
            f"Expected targets as a tensor of class indices, got {type(targets).__name__}. "
            "Pass batch_fn=..., a function from a batch to (inputs, targets)."
        )
    one_hot = targets.ndim == 2 and targets.shape[-1] == num_classes and num_classes > 1
    if targets.is_floating_point() or one_hot:
        if not one_hot and targets.shape[-1:] != (num_classes,):
            raise ValueError(
                f"Expected class indices, or labels with one entry for each of the {num_classes} classes; "
                f"got {targets.dtype} targets of shape {tuple(targets.shape)}."
            )
        return targets.argmax(-1)
    return targets


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """All submodules by dotted name, without the ``_orig_mod`` that torch.compile puts between."""
    return {name.replace("_orig_mod.", ""): module for name, module in model.named_modules() if name}


def classifier_weight(module: nn.Module) -> Tensor | None:
    """The weight of a module that can be a linear classifier (k rows, one a class), else None."""
    weight = getattr(module, "weight", None)
    linear = isinstance(weight, Tensor) and weight.ndim >= 2 and not isinstance(module, nn.Embedding | nn.EmbeddingBag)
    return weight if linear else None


def candidates(model: nn.Module) -> dict[str, nn.Module]:
    """Modules that can be the classifier, by dotted name."""
    return {name: module for name, module in named_modules(model).items() if classifier_weight(module) is not None}


def named_module(model: nn.Module, name: str, what: str) -> nn.Module:
    """The module of that dotted name.

    Raises:
        ValueError: There is none; lists those with a weight matrix.
    """
    if name not in (modules := named_modules(model)):
        raise ValueError(
            f"{what} {name!r} is not a module of {type(model).__name__}. Modules with a weight matrix: "
            f"{_listed(candidates(model))}."
        )
    return modules[name]


def named_head(model: nn.Module, name: str) -> nn.Module:
    """The classifier of that dotted name.

    Raises:
        ValueError: There is no such module, or it has no weight with one row a class.
    """
    module = named_module(model, name, "head")
    weight = classifier_weight(module)
    if weight is None:
        raise ValueError(
            f"head {name!r} ({type(module).__name__}) has no weight matrix, so it has no row a class. "
            f"Candidates: {_listed(candidates(model))}."
        )
    if weight.shape[0] < 2:
        raise ValueError(
            f"head {name!r} has {weight.shape[0]} output; neural collapse compares at least 2 classes. For a binary "
            "task use a classifier with 2 outputs."
        )
    return module


def find_head(model: nn.Module, forward: Callable[[], Any]) -> str:
    """Dotted name of the classifier: among the modules that run and have k weight rows, the one that gives the output.

    k is the last dimension of what `forward` returns (a tensor, ``.logits``, ``["logits"]``, or the first tensor of a
    tuple). A single module with k rows is the classifier. Where there are several, it is the one whose output, or its
    softmax, log-softmax or sigmoid, is what `forward` returns.

    Args:
        model: Searched for modules with a weight.
        forward: Runs the model on one batch and returns its output. Called once, and once more to tell candidates
            apart.

    Raises:
        ValueError: No candidate, or several that cannot be told apart: lists them.
    """
    ran: list[str] = []
    watched = candidates(model)
    with ExitStack() as hooks:
        for name, module in watched.items():

            def note(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
                if _is_fully_connected(module, args):
                    ran.append(name)

            hooks.callback(module.register_forward_hook(note).remove)
        logits = _logits(forward())
    if logits is None:
        raise ValueError(
            f"The model's forward returns no logits to tell the classifier by. Pass head=..., one of {_listed(ran)}, "
            "and forward_fn=... if forward does not run it."
        )
    k = logits.shape[_class_dim(logits)] if logits.ndim > 1 else 1
    rows = {name: w for name in dict.fromkeys(ran) if (w := classifier_weight(watched[name])) is not None}
    fitting = [name for name, weight in rows.items() if weight.shape[0] == k]
    if len(fitting) > 1:
        fitting = _giving(logits, fitting, watched, forward) or fitting
    if not fitting:
        raise ValueError(
            f"No classifier found: the model's output has shape {tuple(logits.shape)}, and no fully connected module "
            f"that ran has {k} weight rows. Modules that ran: {_listed(rows)}. Pass head=... (and forward_fn=... if "
            "forward does not run the classifier)."
        )
    if len(fitting) > 1:
        raise ValueError(f"Several modules can be the classifier: {_listed(fitting)}. Pass head=..., one of them.")
    return fitting[0]


def _giving(logits: Tensor, names: list[str], modules: dict[str, nn.Module], forward: Callable[[], Any]) -> list[str]:
    """Those of the named modules whose output is what the model returns."""
    outputs: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for name in names:

            def keep(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
                outputs[name] = output

            hooks.callback(modules[name].register_forward_hook(keep).remove)
        logits = _logits(forward())  # type: ignore[assignment]
    dim = _class_dim(logits)
    final = (lambda x: x, lambda x: x.softmax(dim), lambda x: x.log_softmax(dim), torch.sigmoid)

    def gives(output: Tensor) -> bool:
        if output.numel() != logits.numel():
            return False
        flat = output.reshape(logits.shape)
        return any(torch.equal(f(flat), logits) for f in final)

    return [name for name, output in outputs.items() if gives(output)]


def _is_fully_connected(module: nn.Module, args: Any) -> bool:
    """Whether each output of the module sees a sample's (or position's) whole input."""
    weight = classifier_weight(module)
    if weight is None or not args or not isinstance(args[0], Tensor) or not args[0].is_floating_point():
        return False
    x = args[0]
    return x.ndim >= 2 and weight[0].numel() == (x.shape[-1] if weight.ndim == 2 else x[0].numel())


def _logits(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping) and isinstance(output.get("logits"), Tensor):
        return output["logits"]
    if isinstance(logits := getattr(output, "logits", None), Tensor):
        return logits
    if isinstance(output, Sequence):
        return next((item for item in output if isinstance(item, Tensor)), None)
    return None


def _class_dim(logits: Tensor) -> int:
    """1 for (n, k), (n, k, 1, 1) and the like, −1 for (n, …, k)."""
    return 1 if all(size == 1 for size in logits.shape[2:]) else -1


def _listed(names: Any) -> str:
    names = list(names)
    return ", ".join(map(repr, names[:20])) + (f" and {len(names) - 20} more" if len(names) > 20 else "") or "none"


class Tap:
    """Hooks on the classifier and further layers, open as a context; `read` gives what one forward pass left there.

    Args:
        model: The model that holds them.
        head: Dotted name of the classifier.
        layers: Dotted names of further modules whose input is watched.
        pool: ``"mean"`` averages layers' inputs over all dimensions after the second; by default they are flattened.

    Raises:
        ValueError: A name is not in the model, or the head has no weight matrix.
    """

    def __init__(self, model: nn.Module, head: str, layers: Sequence[str] = (), pool: Pool = None) -> None:
        self.head = head
        self.module = named_head(model, head)
        self.modules = {head: self.module} | {name: named_module(model, name, "layer") for name in layers}
        self.pool = pool
        self._inputs: dict[str, list[Tensor]] = {}
        self._outputs: list[Tensor] = []
        self._hooks = ExitStack()

    @property
    def weight(self) -> Float[Tensor, "k p"]:
        """W, one row a class; a convolutional weight is flattened."""
        weight = classifier_weight(self.module)
        assert weight is not None
        return weight.detach().flatten(1)

    @property
    def bias(self) -> Float[Tensor, " k"] | None:
        """b, or None."""
        bias = getattr(self.module, "bias", None)
        return bias.detach() if isinstance(bias, Tensor) else None

    def __enter__(self) -> Tap:
        for name, module in self.modules.items():

            def before(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                tensor = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
                if tensor is not None:
                    # A copy: the model may overwrite it in place, and a view would keep its whole storage alive.
                    self._inputs.setdefault(name, []).append(tensor.detach().clone())

            self._hooks.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)

        def after(module: nn.Module, args: Any, output: Any) -> None:
            self._outputs.append(output.detach().clone())

        self._hooks.callback(self.module.register_forward_hook(after).remove)
        return self

    def __exit__(self, *_: Any) -> None:
        self._hooks.close()
        self._inputs.clear()
        self._outputs.clear()

    def read(self, targets: Any) -> Batch:
        """What the forward pass since the last call left at the hooks, as rows.

        Raises:
            ValueError: A watched module did not run or ran more than once, or its rows do not match the targets.
        """
        inputs, output = self._taken()
        k = len(self.weight)
        y = class_indices(targets, k)
        features = {name: self._rows(name, x, y) for name, x in inputs.items()}
        f = output.reshape(-1, k) if output.shape[-1] == k and y.ndim > 1 else output.flatten(1)
        y = y.reshape(-1)
        if f.shape != (len(y), k):
            raise ValueError(
                f"The classifier {self.head!r} gives outputs of shape {tuple(output.shape)} for targets of shape "
                f"{tuple(targets.shape)}; expected one row of {k} outputs a target."
            )
        return Batch(features=features, outputs=f, targets=y)

    def read_features(self) -> dict[str, Float[Tensor, "n p"]]:
        """Features alone of the forward pass since the last call, for data without targets.

        Raises:
            ValueError: A watched module did not run or ran more than once.
        """
        inputs, _ = self._taken()
        # Positions of a sequence are samples, as they are where targets say so.
        sequence = inputs[self.head].ndim > 2 and inputs[self.head].shape[-1] == self.weight.shape[1]
        return {name: x.flatten(0, -2) if sequence else self._flat(name, x) for name, x in inputs.items()}

    def _taken(self) -> tuple[dict[str, Tensor], Tensor]:
        inputs, outputs = self._inputs, self._outputs
        self._inputs, self._outputs = {}, []
        for name in self.modules:
            if (calls := len(inputs.get(name, []))) != 1:
                raise ValueError(
                    f"Module {name!r} ran {calls} times in one forward pass; it is watched where it runs once. "
                    "Name another module, or pass forward_fn=..., a function (module, inputs) that runs it once."
                )
        return {name: captured[0] for name, captured in inputs.items()}, outputs[0]

    def _flat(self, name: str, x: Tensor) -> Tensor:
        pooled = name != self.head and self.pool == "mean" and x.ndim > 2
        return x.flatten(2).mean(2) if pooled else x.flatten(1)

    def _rows(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        rows = x.flatten(0, -2) if y.ndim > 1 else self._flat(name, x)
        if len(rows) != y.numel():
            raise ValueError(
                f"Module {name!r} sees an input of shape {tuple(x.shape)} for targets of shape {tuple(y.shape)}; "
                "expected one row a target. Name another module, or pass batch_fn=... or forward_fn=...."
            )
        return rows


@contextmanager
def undisturbed(model: nn.Module, seed: int = 0) -> Iterator[None]:
    """Run the model in eval mode, without gradients, eagerly, and leave no trace of it.

    Afterwards the train/eval flag of every submodule, every buffer and the random states (Python, NumPy, torch, each
    CUDA device) are what they were before, also after an exception. Inside, random numbers start from `seed`, so that
    random augmentation draws the same each time.

    Args:
        model: The model to run.
        seed: Seed of the random numbers drawn inside.
    """
    modules = list(model.modules())
    flags = [(module, module.training) for module in modules]
    buffers = [(module, dict(module._buffers)) for module in modules]
    values = [(buffer, buffer.clone()) for _, held in buffers for buffer in held.values() if buffer is not None]
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global state is meant
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=list(devices)))
        stack.enter_context(torch.no_grad())
        if "torch._dynamo" in sys.modules:
            # Hooks never fire inside compiled code.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            # torch.manual_seed would also seed devices that are not in use yet.
            torch.default_generator.manual_seed(seed)
            if devices:
                torch.cuda.manual_seed_all(seed)
            model.eval()
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002
            for module, training in flags:
                module.training = training
            for buffer, value in values:
                buffer.copy_(value)
            for module, held in buffers:
                module._buffers.clear()
                module._buffers.update(held)
