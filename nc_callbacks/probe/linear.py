"""The affine map that a module is, read off what it answers."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nc_callbacks.probe.names import whole

Axis = Literal["last", "second", "all"]

_ENTRIES = 2**22
"""Entries of the unit vectors that a module answers at once."""

_ROWS = 4096
"""Rows of features that are compared at most."""

_NEARBY, _SPREAD = 128, 30.0
"""Random rows, and the largest of their spreads over that of the features."""


@dataclass(frozen=True)
class Shape:
    """How a module's input and output are made of rows.

    Example:
        >>> shape = Shape("second", (8, 1), 3)
        >>> shape.inputs(torch.zeros(2, 8, 5)).shape, shape.outputs(torch.zeros(2, 3, 5)).shape
        (torch.Size([2, 5, 8]), torch.Size([2, 5, 3]))
    """

    axis: Axis
    """The dimension of the input that features lie in: the last, the second, or all but the first."""
    example: tuple[int, ...]
    """Shape in which the module takes one row."""
    num_classes: int
    """k, the numbers in a row of the output."""

    @property
    def num_features(self) -> int:
        """p, the numbers in a row of the input."""
        return math.prod(self.example)

    def inputs(self, x: Tensor) -> Float[Tensor, "*positions p"]:
        """Rows of the input, with their positions."""
        return self._rows(x)

    def outputs(self, f: Tensor) -> Float[Tensor, "*positions k"]:
        """Rows of the output, with their positions."""
        return self._rows(f)

    def _rows(self, x: Tensor) -> Tensor:
        if self.axis == "last" or x.ndim == 1:
            return x if x.ndim > 1 else x[None]
        return x.flatten(1) if self.axis == "all" else x.movedim(1, -1)


def shapes_of(module: nn.Module, x: Tensor, f: Tensor) -> list[Shape]:
    """The ways in which each row of the output can be made of a whole row of the input, the likeliest first."""
    convolution = isinstance(module, nn.modules.conv._ConvNd)
    if convolution and not _sees_all(module, x):
        return []
    n = x.shape[0]
    if x.ndim == 1:
        return [Shape("last", (len(x),), len(f))] if f.ndim == 1 else []
    found = []
    if x.ndim == f.ndim and x.shape[:-1] == f.shape[:-1] and not convolution:
        found.append(Shape("last", (1,) * (x.ndim - 2) + (x.shape[-1],), f.shape[-1]))
    flat = f.ndim >= 2 and f.shape[0] == n and all(size == 1 for size in f.shape[2:])
    if flat and x.ndim > 2:
        found.append(Shape("all", tuple(x.shape[1:]), f.shape[1]))
    if x.ndim == f.ndim > 2 and f.shape[0] == n and x.shape[2:] == f.shape[2:] and not flat:
        found.append(Shape("second", (x.shape[1],) + (1,) * (x.ndim - 2), f.shape[1]))
    return found


def _sees_all(module: Any, x: Tensor) -> bool:
    """Whether each output of a convolution sees a position alone, or the whole map."""
    if isinstance(module, nn.modules.conv._ConvTransposeNd) or module.groups != 1:
        return False
    pointwise = all(size == 1 for size in (*module.kernel_size, *module.stride))
    padded = isinstance(module.padding, str) or any(module.padding)
    return not padded and (pointwise or tuple(module.kernel_size) == tuple(x.shape[2:]))


@torch.no_grad()
def affine_map(
    module: nn.Module, shape: Shape, size: float = 1.0, dtype: torch.dtype = torch.float32
) -> tuple[Float[Tensor, "k p"], Float[Tensor, " k"] | None]:
    """W and b of a module that maps h to W h + b, as copies.

    Of a plain linear layer they are its parameters. Any other module is asked for its output at zero and at the unit
    vectors, in eval mode and with no hook but those that compute its weight.

    Args:
        module: The module, with whole parameters.
        shape: How it takes rows.
        size: Length of the unit vectors, of the order of the features.
        dtype: Of the features, for a module without parameters of floating point.
    """
    if is_plain(module):
        weight, bias = module._parameters["weight"], module._parameters.get("bias")
        assert weight is not None
        if len(weight) == shape.num_classes and weight.numel() == shape.num_classes * shape.num_features:
            return whole(weight).flatten(1), None if bias is None else whole(bias)
    own = next((t for t in (*module.parameters(), *module.buffers()) if _is_real(t)), None)
    device = next((t.device for t in (own, *module.parameters(), *module.buffers()) if t is not None), None)
    with _alone(module), torch.autocast(device.type if device else "cpu", enabled=False):
        ask = _asking(module, shape, device, dtype if own is None else own.dtype)
        bias = ask(torch.zeros(1, shape.num_features, device="cpu"))[0]
        step, p = max(1, _ENTRIES // shape.num_features), shape.num_features

        def read(size: float) -> Tensor:
            return torch.cat([(ask(size * _units(at, min(step, p - at), p)) - bias) / size for at in range(0, p, step)])

        columns = read(size)
        largest, offset = size * float(columns.abs().max()), float(bias.abs().max())
        if 0 < largest < offset < math.inf:
            # The answers to short vectors drown in the bias.
            columns = read(size * 2.0 ** math.ceil(math.log2(offset / largest)))
    return columns.T.contiguous(), bias if bool(bias.count_nonzero()) else None


def _units(first: int, count: int, p: int) -> Float[Tensor, "count p"]:
    return nn.functional.one_hot(torch.arange(first, first + count, device="cpu"), p).float()


def is_plain(module: nn.Module) -> bool:
    """Whether a module is a linear layer with a weight and a forward pass that nothing has replaced."""
    known = type(module) in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d) and "forward" not in vars(module)
    return known and module._parameters.get("weight") is not None


def _asking(module: nn.Module, shape: Shape, device: Any, dtype: torch.dtype) -> Any:
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    sharded = any(hasattr(tensor, "full_tensor") for tensor in tensors.values())
    full = {name: whole(tensor) for name, tensor in tensors.items()} if sharded else {}

    def ask(rows: Tensor) -> Tensor:
        x = rows.to(device, dtype).view(-1, *shape.example)
        f = torch.func.functional_call(module, full, (x,)) if sharded else module(x)
        return whole(shape.outputs(f)).reshape(len(rows), -1)

    return ask


def _is_real(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.element_size() > 1


@contextmanager
def _alone(module: nn.Module) -> Iterator[None]:
    """In eval mode and without the hooks of others; scripted modules have none inside."""
    parts = list(module.modules())
    flags = [part.training for part in parts]
    hooks = [(part, part._forward_hooks, part._forward_pre_hooks) for part in parts]
    for part in parts:
        part.training = False
        part._forward_hooks = OrderedDict()
        part._forward_pre_hooks = OrderedDict(
            (key, hook) for key, hook in part._forward_pre_hooks.items() if _computes_weight(hook)
        )
    try:
        yield
    finally:
        for part, after, before in hooks:
            part._forward_hooks, part._forward_pre_hooks = after, before
        for part, training in zip(parts, flags, strict=True):
            part.training = training


def _computes_weight(hook: Any) -> bool:
    """Whether it is of torch's own weight_norm, spectral_norm or pruning."""
    return type(hook).__module__.startswith("torch.nn.utils")


@torch.no_grad()
def is_affine_nearby(
    module: nn.Module,
    shape: Shape,
    weight: Float[Tensor, "k p"],
    bias: Float[Tensor, " k"] | None,
    inputs: Float[Tensor, "n p"],
) -> bool:
    """Whether a module's outputs are W h + b at random rows around the inputs too.

    Those of a mixture of experts are not, though one batch may have gone to one expert alone.

    Args:
        module: The module, with whole parameters.
        shape: How it takes rows.
        weight: W.
        bias: b, or None for 0.
        inputs: Rows of a batch.
    """
    if is_plain(module) or _is_quantised(module):
        # Quantised ranges are those of the data.
        return True
    h = inputs[:_ROWS].float()
    noise = torch.randn(_NEARBY, h.shape[1], generator=torch.Generator().manual_seed(3), device="cpu")
    noise *= torch.logspace(0, math.log10(_SPREAD), _NEARBY, device="cpu")[:, None]
    rows = h.mean(0) + h.std(0, correction=0) * noise.to(h.device)
    rows = rows.abs() if bool((h >= 0).all()) else rows
    own = next((t for t in (*module.parameters(), *module.buffers()) if _is_real(t)), inputs)
    with _alone(module), torch.autocast(inputs.device.type, enabled=False):
        outputs = _asking(module, shape, inputs.device, own.dtype)(rows)
    return is_affine(module, weight, bias, rows.to(own.dtype), outputs)


def is_affine(
    module: nn.Module,
    weight: Float[Tensor, "k p"],
    bias: Float[Tensor, " k"] | None,
    inputs: Float[Tensor, "n p"],
    outputs: Float[Tensor, "n k"],
) -> bool:
    """Whether a module's outputs are W h + b, as near as their precision goes."""
    wide = torch.float32 if inputs.device.type == "mps" else torch.float64
    h, f, w = inputs[:_ROWS].to(wide), outputs[:_ROWS].to(wide), weight.to(wide)
    expected = h @ w.T + (0 if bias is None else bias.to(wide))
    coarse = min(tensor.element_size() for tensor in (inputs, outputs, weight)) < 4
    relative = 3e-2 if coarse or _is_quantised(module) else 2e-3
    reduced = coarse or torch.get_float32_matmul_precision() != "highest"
    rounding = (2**-7 if reduced else 2**-19) * h.norm() * w.norm() / math.sqrt(len(w))
    return bool((expected - f).norm() <= relative * f.norm() + rounding)


def _is_quantised(module: nn.Module) -> bool:
    small = any(not tensor.is_complex() and tensor.element_size() == 1 for tensor in module.parameters())
    return small or "quant" in type(module).__module__ or "packed" in " ".join(module.state_dict())
