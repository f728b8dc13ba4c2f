"""A snapshot puts everything back in place: the same objects, with the same contents."""

import ctypes
import io
import itertools
import multiprocessing
from collections import OrderedDict, deque

import numpy as np
import pytest
import torch
from torch import nn

from nc_callbacks.state.fingerprint import Fingerprint
from nc_callbacks.state.settings import global_settings, put_back_settings
from nc_callbacks.state.snapshot import Snapshot


class Holder:
    def __init__(self, held):
        self.held = held


def assert_put_back(thing, change):
    before = Fingerprint.of(it=thing)
    snapshot = Snapshot(thing)
    change(thing)
    assert before.differences(Fingerprint.of(it=thing))
    snapshot.put_back()
    assert before.differences(Fingerprint.of(it=thing)) == []


@pytest.mark.parametrize(
    ("held", "change"),
    [
        ([1, [2]], lambda h: (h.append(3), h[1].clear())),
        ({"a": [1]}, lambda h: (h.pop("a").append(2), h.update(b=1))),
        (OrderedDict(a=1, b=2), lambda h: h.move_to_end("a")),
        ({1, 2}, lambda h: h.clear()),
        (deque([1, 2], maxlen=2), lambda h: h.append(3)),
        (bytearray(b"ab"), lambda h: h.extend(b"c")),
        (([1], 2), lambda h: h[0].append(1)),
        (torch.zeros(3), lambda h: h.add_(1)),
        (np.zeros(10**6), lambda h: h.fill(1)),
        (ctypes.c_int(3), lambda h: setattr(h, "value", 4)),
        (multiprocessing.Value("i", 3), lambda h: setattr(h, "value", 4)),
        (multiprocessing.Array("d", [1.0, 2.0]), lambda h: h.__setitem__(0, 4.0)),
        (io.BytesIO(b"text"), lambda h: (h.read(), h.write(b"more"))),
    ],
    ids=lambda value: type(value).__name__,
)
def test_contents(held, change):
    thing = Holder(held)
    assert_put_back(thing, lambda thing: change(thing.held))
    assert thing.held is held


def test_attributes_that_come_go_and_change():
    thing = Holder(1)
    assert_put_back(thing, lambda t: vars(t).update(held=2, new=[]))
    assert_put_back(thing, lambda t: delattr(t, "held"))
    assert vars(thing) == {"held": 1}


@pytest.mark.parametrize("make", [itertools.count, lambda: itertools.cycle([1, 2]), lambda: iter([1, 2, 3])])
def test_iterators_are_copied_meanwhile(make):
    thing, plain = Holder([make()]), make()
    iterator = thing.held[0]
    snapshot = Snapshot(thing)
    assert next(thing.held[0]) == next(plain)
    snapshot.put_back()
    assert thing.held[0] is iterator
    assert next(iterator) == next(make())


class TestModules:
    def test_parameters_in_every_way(self):
        net = nn.Linear(3, 2)
        weight, held, version = net.weight, net.weight.detach().clone(), net.weight._version
        grad = net.weight.grad = torch.ones(2, 3)
        place, extra = weight.data_ptr(), nn.Linear(1, 1)

        def change(net):
            net.weight.data.mul_(2)
            net.bias.data = torch.ones(2)
            net.bias.requires_grad_(False)
            net.weight.grad = None
            net.register_buffer("late", torch.ones(1))
            net.extra = extra
            net.register_forward_hook(print)

        assert_put_back(net, change)
        assert net.weight is weight
        assert weight.data_ptr() == place
        assert weight._version == version
        assert weight.grad is grad
        assert torch.equal(weight, held)
        assert dict(net.named_modules()).keys() == {""}

    def test_a_graph_that_is_kept_can_still_be_gone_back(self):
        net = nn.Linear(3, 2)
        loss = net(torch.ones(1, 3)).pow(2).sum()
        snapshot = Snapshot(net)
        snapshot.put_back()
        loss.backward()
        assert net.weight.grad is not None

    def test_tied_and_cyclic(self):
        net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        net[1].weight = net[0].weight
        net.hidden = [net]
        assert_put_back(net, lambda net: net[0].weight.data.zero_())

    def test_a_lazy_layer_is_lazy_again(self):
        net = nn.Sequential(nn.LazyLinear(2))
        snapshot = Snapshot(net)
        net(torch.ones(1, 3))
        snapshot.put_back()
        assert type(net[0]) is nn.LazyLinear
        assert isinstance(net[0].weight, nn.parameter.UninitializedParameter)
        net(torch.ones(1, 5))
        assert type(net[0]) is nn.Linear
        assert net[0].weight.shape == (2, 5)

    def test_lazy_buffers_are_lazy_again(self):
        net = nn.LazyBatchNorm1d()
        snapshot = Snapshot(net)
        net(torch.ones(2, 3))
        snapshot.put_back()
        assert all(isinstance(t, nn.parameter.UninitializedBuffer) for t in (net.running_mean, net.running_var))
        net(torch.ones(2, 5))
        assert type(net.running_var) is torch.Tensor
        assert net.running_var.shape == (5,)

    def test_expanded_and_quantised_and_sparse_tensors_do_no_harm(self):
        net = nn.Linear(2, 2)
        net.wide, net.sparse, net.count = torch.zeros(1).expand(5), torch.eye(2).to_sparse(), 0
        net.small = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
        assert_put_back(net, lambda net: setattr(net, "count", 1))

    @pytest.mark.filterwarnings("ignore:.*deprecated")
    def test_a_scripted_module(self):
        net = nn.Sequential(torch.jit.script(Scripted()))
        held = net[0].calls, net[0].mean.clone(), net[0].scale.clone()
        snapshot = Snapshot(net)
        net(torch.ones(2))
        assert net[0].calls == 1
        snapshot.put_back()
        assert net[0].calls == held[0]
        assert torch.equal(net[0].mean, held[1])
        assert torch.equal(net[0].scale, held[2])


class Scripted(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls, self.mean = 0, torch.zeros(2)
        self.register_buffer("scale", torch.ones(2))

    def forward(self, x):
        self.calls += 1
        self.mean = self.mean + x
        self.scale += 1
        return x * self.scale


def test_settings(request):
    before = global_settings()
    request.addfinalizer(lambda: put_back_settings(before))
    # A trainer of another test may have left it on.
    torch.use_deterministic_algorithms(False)
    held = global_settings()
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = True
    np.seterr(under="raise")
    put_back_settings(held)
    assert global_settings() == held
    assert torch.get_default_dtype() == torch.float32
    assert not torch.are_deterministic_algorithms_enabled()
