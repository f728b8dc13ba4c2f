"""The affine map that a module is."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from nc_callbacks.probe.linear import Shape, affine_map, is_affine, is_affine_nearby, shapes_of


class Turned(nn.Module):
    """Keeps its weight as (p, k)."""

    def __init__(self, p, k):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(p, k)), nn.Parameter(100 * torch.randn(k))

    def forward(self, x):
        return x @ self.weight + self.bias


class LowRank(nn.Module):
    def __init__(self, p, k):
        super().__init__()
        self.base, self.down, self.up = nn.Linear(p, k), nn.Linear(p, 2, bias=False), nn.Linear(2, k, bias=False)

    def forward(self, x):
        return self.base(x) + 0.5 * self.up(self.down(x))


class Cosine(nn.Module):
    def __init__(self, p, k):
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.randn(k, p)), nn.Parameter(torch.tensor(16.0))

    def forward(self, x):
        return self.scale * F.linear(F.normalize(x), F.normalize(self.weight))


def pruned(p, k):
    return prune.l1_unstructured(nn.Linear(p, k), "weight", amount=0.5)


def patched(p, k):
    """A linear layer whose forward pass has been replaced on the object, with an adapter in it."""
    linear, down, up = nn.Linear(p, k), torch.randn(2, p), torch.randn(k, 2)
    linear.forward = lambda x: F.linear(x, linear.weight, linear.bias) + x @ down.T @ up.T
    return linear


MAPS = {
    "linear": nn.Linear,
    "no bias": lambda p, k: nn.Linear(p, k, bias=False),
    "turned": Turned,
    "low rank": LowRank,
    "weight_norm": lambda p, k: parametrizations.weight_norm(nn.Linear(p, k)),
    "spectral_norm": lambda p, k: parametrizations.spectral_norm(nn.Linear(p, k)),
    "old weight_norm": lambda p, k: nn.utils.weight_norm(nn.Linear(p, k)),
    "old spectral_norm": lambda p, k: nn.utils.spectral_norm(nn.Linear(p, k)),
    "pruned": pruned,
    "patched": patched,
    "scripted": lambda p, k: torch.jit.script(nn.Linear(p, k)),
    "batch norm before": lambda p, k: nn.Sequential(nn.BatchNorm1d(p), nn.Linear(p, k)),
}


def read(module, x, size=1.0):
    with torch.no_grad():
        outputs = module.eval()(x)
    shape = shapes_of(module, x, outputs)[0]
    weight, bias = affine_map(module, shape, size, x.dtype)
    return shape.inputs(x).flatten(0, -2), shape.outputs(outputs).flatten(0, -2), weight, bias


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("make", MAPS.values(), ids=MAPS.keys())
@pytest.mark.parametrize("leading", [(9,), (3, 5)], ids=["rows", "sequence"])
def test_weight_and_bias_give_the_outputs(make, leading):
    torch.manual_seed(0)
    module, x = make(6, 4), torch.randn(*leading, 6)
    if len(leading) > 1 and "BatchNorm" in repr(module):
        return
    h, f, weight, bias = read(module, x)
    assert (weight.shape, h.shape[1]) == ((4, 6), 6)
    torch.testing.assert_close(h @ weight.T + (0 if bias is None else bias), f, rtol=1e-4, atol=1e-4)
    assert is_affine(module, weight, bias, h, f)
    assert (bias is None) == (getattr(module, "bias", 0) is None)


@pytest.mark.parametrize(
    ("module", "shape", "axis"),
    [
        (nn.Conv2d(6, 4, 1), (5, 6, 1, 1), "all"),
        (nn.Conv2d(6, 4, 3), (5, 6, 3, 3), "all"),
        (nn.Conv2d(6, 4, 1), (5, 6, 3, 2), "second"),
        (nn.Conv1d(6, 6, 1), (5, 6, 6), "second"),
        (nn.Sequential(nn.Flatten(), nn.Linear(54, 4)), (5, 6, 3, 3), "all"),
    ],
)
def test_maps_and_volumes(module, shape, axis):
    x = torch.randn(*shape)
    assert shapes_of(module, x, module(x))[0].axis == axis
    h, f, weight, bias = read(module, x)
    torch.testing.assert_close(h @ weight.T + bias, f, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("module", [nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(6, 4, 2), nn.Conv2d(6, 4, 1, groups=2)])
def test_convolutions_that_see_a_part(module):
    x = torch.randn(2, 6, 5, 5)
    assert shapes_of(module, x, module(x)) == []


def test_cosine_classifiers_are_not_affine():
    torch.manual_seed(0)
    module = Cosine(6, 4)
    h, f, weight, bias = read(module, torch.randn(9, 6))
    assert not is_affine(module, weight, bias, h, f)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_large_bias_does_not_drown_the_weight(dtype):
    torch.manual_seed(0)
    module, x = LowRank(6, 4).to(dtype), (300 * torch.randn(9, 6)).to(dtype)
    h, f, weight, bias = read(module, x, size=256.0)
    exact = module.base.weight.double() + 0.5 * module.up.weight.double() @ module.down.weight.double()
    assert ((weight.double() - exact).norm() / exact.norm()).item() < 4 * torch.finfo(dtype).eps
    assert is_affine(module, weight, bias, h, f)


@pytest.mark.filterwarnings("ignore")
def test_quantised():
    torch.manual_seed(0)
    module = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(6, 4)), {nn.Linear})
    h, f, weight, bias = read(module, torch.randn(9, 6))
    torch.testing.assert_close(weight, module[0].weight().dequantize())
    assert is_affine(module, weight, bias, h, f)


def test_nothing_is_left_of_the_reading():
    module = parametrizations.spectral_norm(nn.Linear(6, 4)).train()
    seen = []
    module.register_forward_hook(lambda *_: seen.append(1))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    affine_map(module, Shape("last", (6,), 4))
    assert not seen
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(part.training for part in module.modules())
    module(torch.ones(1, 6))
    assert seen


def test_many_features_are_asked_for_in_blocks(monkeypatch):
    monkeypatch.setattr("nc_callbacks.probe.linear._ENTRIES", 14)
    module = Turned(6, 4)
    weight, bias = affine_map(module, Shape("last", (6,), 4))
    torch.testing.assert_close(weight, module.weight.T, rtol=0, atol=3e-5)
    assert torch.equal(bias, module.bias)


def test_small_features_beside_a_large_bias():
    class Own(nn.Linear):
        """A subclass, whose weight is read off its answers."""

    module = Own(12, 4)
    nn.init.constant_(module.bias, 3.0)
    weight, bias = affine_map(module, Shape("last", (12,), 4), size=2.0**-20)
    torch.testing.assert_close(weight, module.weight.detach(), rtol=1e-5, atol=1e-6)
    assert torch.equal(bias, module.bias.detach())


def test_whatever_the_default_device():
    torch.manual_seed(0)
    module, x = nn.Sequential(nn.Linear(6, 4), nn.Identity()), torch.randn(9, 6)
    with torch.device("meta"):
        shape = shapes_of(module, x, module(x))[0]
        weight, bias = affine_map(module, shape, 1.0, x.dtype)
        assert is_affine_nearby(module, shape, weight, bias, x)
    torch.testing.assert_close(x @ weight.T + bias, module(x))
