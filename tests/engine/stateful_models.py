"""Models that keep state outside of parameters and buffers."""

import functools
import itertools
import random
import weakref
from collections import deque
from dataclasses import dataclass, field

import lightning as L
import numpy as np
import torch
from torch import nn

from tests.callbacks.common import K


class Net(L.LightningModule):
    """A small network whose input `disturbed` changes by what it keeps."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 8), nn.Tanh())
        self.head = nn.Linear(8, K)

    def disturbed(self, x):
        return x

    def forward(self, x):
        return self.head(self.body(self.disturbed(x)))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)


class Counter(Net):
    calls = 0

    def disturbed(self, x):
        self.calls += 1
        return x * (1 + 1e-3 * self.calls)


class OfTheClass(Net):
    calls = 0

    def disturbed(self, x):
        type(self).calls += 1
        return x * (1 + 1e-3 * self.calls)


COUNT = 0
RNG = np.random.default_rng(3)
HISTORY = []


class Globals(Net):
    def disturbed(self, x):
        global COUNT
        COUNT += 1
        HISTORY.append(COUNT)
        return x * (1 + 1e-3 * COUNT + 1e-3 * len(HISTORY)) + 0.1 * float(RNG.normal())


class Generators(Net):
    """In lists, dicts, partials, closures, bound methods."""

    def __init__(self):
        super().__init__()
        self.own = torch.Generator().manual_seed(3)
        self.held = {"numpy": [np.random.default_rng(1), np.random.RandomState(2)], "python": (random.Random(3),)}
        self.noise = functools.partial(torch.randn, generator=torch.Generator().manual_seed(4))
        inner = torch.Generator().manual_seed(5)
        self.closure = lambda shape: torch.randn(shape, generator=inner)
        self.draw = random.Random(6).random

    def disturbed(self, x):
        x = x + 0.1 * torch.randn(x.shape, generator=self.own) + 0.1 * self.held["numpy"][0].random()
        x = x + 0.1 * self.held["numpy"][1].rand() + 0.1 * self.held["python"][0].random()
        return x + 0.1 * self.noise(x.shape) + 0.1 * self.closure(x.shape) + 0.1 * self.draw()


class Iterators(Net):
    def __init__(self):
        super().__init__()
        self.count, self.cycle = itertools.count(1), itertools.cycle([0.1, 0.2, 0.3])
        self.next_one, self.drawn = itertools.count(5).__next__, functools.partial(next, itertools.count())
        self.steps = iter([0.01 * step for step in range(1000)])

    def disturbed(self, x):
        by = 1e-3 * (next(self.count) + self.next_one() + self.drawn()) + next(self.cycle) + next(self.steps)
        return x * (1 + by)


@dataclass
class Memory:
    means: dict = field(default_factory=dict)
    recent: deque = field(default_factory=lambda: deque(maxlen=3))


class Slots:
    __slots__ = ("calls",)

    def __init__(self):
        self.calls = 0


class Objects(Net):
    """A dataclass, slots, a queue, an exponential average, a weak reference."""

    def __init__(self):
        super().__init__()
        self.memory, self.slots, self.kept = Memory(), Slots(), Memory()
        self.weak = weakref.ref(self.kept)

    def disturbed(self, x):
        mean = x.detach().mean(0)
        means = self.memory.means
        means["x"] = 0.9 * means["x"] + 0.1 * mean if "x" in means else mean
        self.memory.recent.append(mean)
        self.weak().recent.append(2 * mean)
        self.slots.calls += 1
        return (
            x
            + 0.1 * means["x"]
            + 0.1 * sum(self.memory.recent)
            + 0.01 * self.slots.calls
            + 0.1 * sum(self.weak().recent)
        )


class Closures(Net):
    def __init__(self):
        super().__init__()
        calls, seen = 0, []

        def step():
            nonlocal calls
            calls += 1
            seen.append(calls)
            return 1e-3 * calls * len(seen)

        self.step = step

    def disturbed(self, x, made=[]):  # noqa: B006 - state in a default argument is meant
        made.append(1)
        return x * (1 + self.step() + 1e-3 * len(made))


class InPlace(Net):
    """Running statistics in plain tensors and arrays; a hidden state; a membrane potential."""

    def __init__(self):
        super().__init__()
        self.mean, self.array, self.hidden = torch.zeros(6), np.zeros(6, dtype=np.float32), None

    def disturbed(self, x):
        self.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
        self.array += 0.1 * x.detach().mean(0).numpy()
        self.hidden = x.detach().mean(0) if self.hidden is None else 0.5 * self.hidden + x.detach().mean(0)
        return x + 0.1 * self.mean + 0.1 * torch.from_numpy(self.array.copy()) + 0.1 * self.hidden


class LateBuffer(Net):
    ready = False

    def disturbed(self, x):
        if not self.ready:
            self.register_buffer("scale", 1 / x.detach().std(0))
            self.ready = True
        return x * self.scale


class LateHook(Net):
    """A hook that is registered, and an attribute that is deleted, in the first forward pass."""

    def __init__(self):
        super().__init__()
        self.fresh = True

    def disturbed(self, x):
        if hasattr(self, "fresh"):
            self.body.register_forward_hook(lambda module, args, output: 1.5 * output)
            scale = torch.rand(1)
            del self.fresh
            return x * scale
        return x


class Renormalised(Net):
    """Weights that forward writes; a new tensor in the place of the old."""

    def forward(self, x):
        self.body[0].weight.data = torch.renorm(self.body[0].weight.data, 2, 0, 0.3)
        self.head.weight.data.mul_(0.99)
        return super().forward(x)


class MergingLoRA(nn.Linear):
    def __init__(self, p, q):
        super().__init__(p, q)
        self.A, self.B = nn.Parameter(0.3 * torch.randn(2, p)), nn.Parameter(0.3 * torch.randn(q, 2))
        self.merged = False

    def train(self, mode=True):
        super().train(mode)
        if mode and self.merged:
            self.weight.data -= self.B @ self.A
        if not mode and not self.merged:
            self.weight.data += self.B @ self.A
        self.merged = not mode
        return self

    def forward(self, x):
        y = nn.functional.linear(x, self.weight, self.bias)
        return y if self.merged else y + x @ self.A.T @ self.B.T


class Merging(Net):
    def __init__(self):
        super().__init__()
        self.body[0] = MergingLoRA(6, 8)


class Settings(Net):
    calls = 0

    def disturbed(self, x):
        torch.set_default_dtype(torch.float64 if self.calls else torch.float32)
        self.calls += 1
        return x * torch.rand(1).float()

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        torch.set_default_dtype(torch.float32)
        return loss


class Logging(Net):
    """Logs in forward what a scheduler could read."""

    def disturbed(self, x):
        self.log("seen", x.mean(), on_epoch=True, on_step=False)
        return x


class Opening(Net):
    """Reads numbers off a file that stays open."""

    def __init__(self, path):
        super().__init__()
        path.write_text("\n".join(str(number) for number in range(1000)))
        self.file = path.open("rb")

    def disturbed(self, x):
        return x * (1 + 1e-3 * int(self.file.readline()))


def reset():
    global COUNT, RNG
    COUNT, RNG = 0, np.random.default_rng(3)
    HISTORY.clear()
    OfTheClass.calls = 0
    Closures.disturbed.__defaults__[0].clear()
