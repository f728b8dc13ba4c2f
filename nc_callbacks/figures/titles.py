"""The data set's name in figures' titles."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from matplotlib.figure import Figure

_name: ContextVar[str] = ContextVar("name", default="")


@contextmanager
def of_data(name: str) -> Iterator[None]:
    """Figures that are saved meanwhile have the name in their title; empty where it is not known."""
    token = _name.set(name)
    try:
        yield
    finally:
        _name.reset(token)


def name_data(figure: Figure) -> None:
    """Put the data set's name before the figure's title, or above the axes' where it has none."""
    if not (name := _name.get()):
        return
    title = figure.get_suptitle()
    if title.startswith(name):
        return
    if title:
        figure.suptitle(f"{name}: {title}")
    else:
        figure.suptitle(name, fontsize=10)
