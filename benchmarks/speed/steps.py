"""A first line that says how long a benchmark takes, and a bar while it runs; both on the error stream."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def announced(steps: Iterable[T], how_long: str) -> Iterator[T]:
    """The steps one by one, behind a bar where a terminal shows it.

    Args:
        steps: What is measured one after the other.
        how_long: Of all steps, such as "about a minute on two cores".
    """
    steps = list(steps)
    print(f"{len(steps)} steps, {how_long}.", file=sys.stderr, flush=True)
    yield from tqdm(steps, leave=False, dynamic_ncols=True, disable=not sys.stderr.isatty())
