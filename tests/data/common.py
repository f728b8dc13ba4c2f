"""Data that changes itself when it is read."""

import functools

import numpy as np
from torch.utils.data import Dataset

from nc_callbacks.data.preserve import preserved


class Data(Dataset):
    """Holds what it is given, and calls `read` with itself when it is read."""

    def __init__(self, read, **attributes):
        vars(self).update(attributes)
        self.read = read

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.read(self)


class Jitter:
    """A transform with a generator of its own."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        return x + self.rng.normal()

    def apply(self, x):
        return self(x)


class Compose:
    def __init__(self, *transforms):
        self.transforms = list(transforms)

    def __call__(self, x):
        return functools.reduce(lambda value, transform: transform(value), self.transforms, x)


def twice(data, *roots):
    """What a read gives inside the context, and the same read after it."""
    with preserved(*(roots or (data,))):
        inside = [data[0] for _ in range(5)]
    return inside, [data[0] for _ in range(5)]
