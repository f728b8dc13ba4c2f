"""What changed between two moments is named."""

import functools
import itertools
import random
import types

import numpy as np
import pytest
import torch
from torch import nn

from nc_callbacks.state.fingerprint import Fingerprint

COUNT = 0


def count():
    global COUNT
    COUNT += 1


class Held:
    total = 0

    def __init__(self, value):
        self.value = value


class Slots:
    __slots__ = ("value",)

    def __init__(self):
        self.value = 0


def add_to_class(held):
    Held.total += 1


def closure():
    calls = 0

    def call():
        nonlocal calls
        calls += 1

    return call


def changed(thing, change):
    before = Fingerprint.of(it=thing)
    assert before.differences(Fingerprint.of(it=thing)) == []
    change(thing)
    return before.differences(Fingerprint.of(it=thing))


CASES = {
    "number": (lambda: Held(1), lambda h: setattr(h, "value", 2), "it.value"),
    "new attribute": (lambda: Held(1), lambda h: setattr(h, "other", 2), "it.other"),
    "slot": (Slots, lambda s: setattr(s, "value", 2), "it.value"),
    "class": (lambda: Held(1), add_to_class, "Held.total"),
    "global": (lambda: count, lambda f: f(), f"COUNT of {__name__}"),
    "closure": (closure, lambda f: f(), "calls around closure.<locals>.call"),
    "list": (lambda: Held([1, [2]]), lambda h: h.value[1].append(3), "it.value[1]"),
    "dict": (lambda: {"a": {"b": 1}}, lambda d: d["a"].update(b=2), "it[a][b]"),
    "set": (lambda: Held({1}), lambda h: h.value.add(2), "it.value (its members)"),
    "tensor": (lambda: Held(torch.zeros(3)), lambda h: h.value.add_(1), "it.value"),
    "large tensor": (lambda: Held(torch.zeros(10**6)), lambda h: h.value[-1:].add_(1), "it.value"),
    "array": (lambda: Held(np.zeros(3)), lambda h: h.value.fill(1), "it.value"),
    "generator": (lambda: Held(torch.Generator()), lambda h: torch.rand(1, generator=h.value), "it.value"),
    "python generator": (lambda: Held(random.Random(0)), lambda h: h.value.random(), "it.value"),
    "numpy generator": (lambda: [np.random.default_rng(0)], lambda h: h[0].random(), "it[0]"),
    "iterator": (lambda: Held(itertools.count()), lambda h: next(h.value), "it.value (an iterator)[1][0]"),
    "generator function": (lambda: Held(i for i in range(9)), lambda h: next(h.value), "it.value.i"),
    "parameter": (lambda: nn.Linear(2, 2), lambda m: m.weight.data.add_(1), "it.weight"),
    "buffer": (lambda: nn.Sequential(nn.BatchNorm1d(2)), lambda m: m(torch.randn(4, 2)), "it.0.running_mean"),
    "mode": (lambda: nn.Linear(2, 2), lambda m: m.eval(), "it.training"),
    "hook": (lambda: nn.Linear(2, 2), lambda m: m.register_forward_hook(print), "it._forward_hooks"),
    "cached function": (lambda: functools.lru_cache(abs), lambda f: f(3), "it"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_changed_is_named(case):
    make, change, path = CASES[case]
    assert path in changed(make(), change)


def test_files(tmp_path):
    path = tmp_path / "file"
    path.write_text("one\ntwo\n")
    with path.open("rb") as file:
        assert changed([file], lambda held: held[0].readline()) == ["it[0]"]


def test_random_numbers_and_settings():
    before = Fingerprint.of()
    torch.rand(1)
    np.random.rand()  # noqa: NPY002
    random.random()
    torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark
    try:
        found = before.differences(Fingerprint.of())
    finally:
        torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark
    assert found == [
        "Python's random numbers",
        "NumPy's random numbers",
        "torch's random numbers",
        "torch.backends.cudnn.benchmark",
    ]


def test_cycles_and_what_refuses_to_be_looked_into():
    class Refusing:
        def __getattribute__(self, name):
            raise RuntimeError(name)

    held = Held([Refusing(), types.SimpleNamespace(n=1)])
    held.me = held
    assert changed(held, lambda h: setattr(h.value[1], "n", 2)) == ["it.value[1].n"]
