"""Features of a backbone, batch by batch, and a random sample of a stream of them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn

from nc_callbacks.data.loader import own_loaders
from nc_callbacks.probe import class_indices, default_batch_fn

BatchFn = Callable[[Any], tuple[Any, Any]]

SEED = 2_971_215_073
"""Of what is drawn among samples. Data made in a script come from seed 0 or the like: the same numbers would decide
which class a sample has and whether it is drawn."""


def check_backbone(backbone: Any) -> None:
    """Refuse what is no module.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(backbone, nn.Module):
        raise ValueError(
            f"backbone must be an nn.Module from inputs to features, got {type(backbone).__name__}. For a loader of "
            "features pass torch.nn.Identity()."
        )


def device_of(backbone: nn.Module) -> torch.device:
    """Where the module's first parameter or buffer lies; the CPU where it has none."""
    tensor = next(chain(backbone.parameters(), backbone.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def feature_batches(
    backbone: nn.Module, loader: Any, batch_fn: BatchFn | None = None
) -> Iterator[tuple[Float[Tensor, "n *p"], Any]]:
    """Features and targets of each batch of a loader, in order, each sample once.

    Run it inside `nc_callbacks.probe.undisturbed`. Where torch.distributed is initialised, this rank's share.

    Args:
        backbone: From inputs to features; batches are moved to its device.
        loader: Any loader; a `DataLoader` is gone through sequentially, without touching its random state.
        batch_fn: From a batch to (inputs, targets); see `nc_callbacks.probe.default_batch_fn`.

    Raises:
        ValueError: The loader is empty or its batches have no targets; the backbone does not return a tensor.
    """
    distributed = dist.is_available() and dist.is_initialized()
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)
    device = device_of(backbone)
    numbered = ((own, *item) for own in own_loaders(loader, rank, world_size) for item in enumerate(own.loader))
    for own, number, batch in numbered:
        inputs, targets = (batch_fn or default_batch_fn)(move_data_to_device(batch, device))
        features = backbone(inputs)
        if not isinstance(features, Tensor):
            raise ValueError(
                f"Expected the backbone ({type(backbone).__name__}) to return features as a tensor, got "
                f"{type(features).__name__}. Wrap it in a module whose forward picks them."
            )
        if own.counts(number):
            yield features, targets


def as_rows(features: Tensor, targets: Tensor) -> tuple[Float[Tensor, "n p"], Int[Tensor, " n"]]:
    """One row per target, as `nc_callbacks.ClassStatistics` takes it: (n, p, 1, 1) is flattened, (n, …, p) cut in rows.

    Raises:
        ValueError: There is not one row per target.
    """
    rows = features.flatten(1) if targets.ndim <= 1 else features.flatten(0, -2)
    if len(rows) != targets.numel():
        raise ValueError(
            f"Expected one row of features a target, got {tuple(features.shape)} and {tuple(targets.shape)}."
        )
    return rows, targets.reshape(-1)


def labelled_rows(
    features: Tensor, targets: Any, num_classes: int, ignore_index: int | None
) -> tuple[Float[Tensor, "n p"], Int[Tensor, " n"]]:
    """`as_rows` of a batch with any targets, without those that are `ignore_index`.

    Raises:
        ValueError: As `nc_callbacks.probe.class_indices` and `as_rows`.
    """
    rows, indices = as_rows(features, class_indices(targets, num_classes))
    if ignore_index is None:
        return rows, indices
    kept = indices != ignore_index
    return rows[kept], indices[kept]


class LayerOutputs:
    """Outputs of named modules of a backbone, batch by batch.

    Args:
        backbone: Where the modules are.
        layers: Their dotted names; those that there are not are left out (see `absent`).
    """

    def __init__(self, backbone: nn.Module, layers: Sequence[str]) -> None:
        modules = dict(backbone.named_modules())
        self._modules = {layer: modules[layer] for layer in layers if layer in modules}
        self._found: dict[str, Any] = {}
        self.absent = {layer: _absent(layer, modules) for layer in layers if layer not in modules}

    def __enter__(self) -> LayerOutputs:
        self._handles = [
            module.register_forward_hook(partial(self._keep, layer)) for layer, module in self._modules.items()
        ]
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep(self, layer: str, module: nn.Module, inputs: Any, output: Any) -> None:
        self._found[layer] = output if layer not in self._found else None

    def take(self, layer: str) -> Float[Tensor, "n *p"]:
        """The layer's output in the last forward pass, averaged over positions or tokens.

        Raises:
            ValueError: It is no tensor, or the module did not run once.
        """
        ran, output = layer in self._found, self._found.pop(layer, None)
        if not isinstance(output, Tensor):
            raise ValueError(
                f"Expected layer {layer!r} to run once and return a tensor; "
                f"{'it returned something else or ran again' if ran else 'it did not run'}. Name another module."
            )
        if output.ndim == 3:
            return output.mean(1)
        return output.flatten(2).mean(2) if output.ndim > 3 else output


def _absent(layer: str, modules: Mapping[str, nn.Module]) -> str:
    near = difflib.get_close_matches(layer, [name for name in modules if name], 3, 0.4)
    return f"The backbone has no module {layer!r}{'; did you mean ' + ' or '.join(map(repr, near)) if near else ''}."


class FeatureSample:
    """A uniform random sample of the rows of a stream, without replacement, in bounded memory.

    Each row draws a number, and those with the largest numbers stay.

    Args:
        size: Rows to keep at most.
        seed: Of the numbers drawn; the global random state is left alone.

    Example:
        >>> sample = FeatureSample(size=3)
        >>> for start in range(0, 100, 10):
        ...     rows = torch.arange(start, start + 10)
        ...     sample.update(rows[:, None].float(), rows)
        >>> features, targets = sample.read()
        >>> features.shape, torch.equal(features.squeeze(1), targets.float())
        (torch.Size([3, 1]), True)
    """

    def __init__(self, size: int = 8192, seed: int = SEED) -> None:
        self.size = size
        self._generator = torch.Generator().manual_seed(seed)
        self._least = -1.0
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def update(self, features: Float[Tensor, "n p"], targets: Int[Tensor, " n"]) -> None:
        """Add rows."""
        keys = torch.rand(len(targets), generator=self._generator, dtype=torch.float64, device="cpu")
        staying = keys > self._least
        here = staying.to(features.device)
        self._parts.append((keys[staying], features.detach()[here], targets.detach()[here]))
        # Twice the size is let grow, so that rows are seldom moved.
        if sum(len(part[0]) for part in self._parts) > 2 * self.size:
            self._cut()

    def read(self) -> tuple[Float[Tensor, "size p"], Int[Tensor, " size"]]:
        """The sampled rows and their targets; of shape (0, 0) and (0,) where none were added."""
        if not self._parts:
            return torch.empty(0, 0), torch.empty(0, dtype=torch.long)
        self._cut()
        _, features, targets = self._parts[0]
        return features, targets

    def _cut(self) -> None:
        keys, features, targets = (torch.cat(part) for part in zip(*self._parts, strict=True))
        keys, order = keys.topk(min(self.size, len(keys)))
        here = order.to(features.device)
        self._parts = [(keys, features[here], targets[here])]
        if len(keys) == self.size:
            self._least = float(keys[-1])
