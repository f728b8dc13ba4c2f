"""A callback's results as a table, as a figure, and in a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from nc_callbacks.callbacks.results import Results
from nc_callbacks.metrics import METRICS, LogKey

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Views(Results):
    """Results that can be shown in a notebook."""

    prefix: str

    def to_frame(self, by_class: bool = False) -> Any:
        """The history as a pandas DataFrame, one row per look.

        Args:
            by_class: One row per look and class, with the vectors that have an entry per class as columns; by default
                vectors are left out.

        Returns:
            Columns ``epoch`` and ``step`` as the trainer counts them (from 0), ``class`` where asked for, and one a log
            key.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        try:
            import pandas
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("to_frame needs pandas: pip install pandas, or read `history`.") from error
        return pandas.DataFrame(rows_by_class(self.history) if by_class else rows_by_look(self.history))

    def plot(self, val: str | None = None, ax: Axes | None = None) -> tuple[Figure, Any]:
        """Draw a metric over the looks so far, or all conditions of collapse.

        Args:
            val: A metric (``"nc1"``, on all splits and layers) or a log key (``"nc/train/nc1"``); None for the summary.
            ax: Where to draw a metric; by default a new figure.

        Returns:
            The figure, and its axes: one, or a list of the summary's.

        Raises:
            ValueError: There was no look yet, or none with such a value; names the nearest.
            ModuleNotFoundError: matplotlib is not installed.
        """
        try:
            from nc_callbacks.figures.any import plot_value
            from nc_callbacks.figures.summary import summary_figure
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("plot needs matplotlib: pip install matplotlib.") from error
        if not self.history:
            raise ValueError(
                f"{type(self).__name__} has no look of a fit yet: nothing can be drawn. Call plot after fit."
            )
        if val is not None:
            return plot_value(self.history, self.latest, val, self.prefix, ax)
        if ax is not None:
            raise ValueError('The summary has panels of its own: pass a metric with ax, such as plot("nc1", ax).')
        figure = summary_figure([(self.history, self.latest, self.prefix)], self.prefix)
        return figure, [axes for axes in figure.axes if axes.axison]

    def __repr__(self) -> str:
        looks = len(self.history)
        parts = [f"{looks} look{'' if looks == 1 else 's'}"]
        if looks:
            parts.append(f"the last after epoch {self.history[-1]['epoch'] + 1}")
        if self.head:
            parts.append(f"classifier {self.head!r} of {self.num_classes} classes")
        return f"{type(self).__name__}({', '.join(parts)})"


def rows_by_look(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The numbers of each look.

    Example:
        >>> import torch
        >>> rows_by_look([{"epoch": 0, "nc/train/nc1": 0.5, "nc/train/counts": torch.ones(2)}])
        [{'epoch': 0, 'nc/train/nc1': 0.5}]
    """
    return [{key: value for key, value in record.items() if not isinstance(value, Tensor)} for record in history]


def rows_by_class(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The per-class vectors of each look, one row a class.

    Example:
        >>> import torch
        >>> rows_by_class([{"epoch": 0, "step": 8, "nc/train/counts": torch.tensor([3.0, 4.0])}])[1]
        {'epoch': 0, 'step': 8, 'class': 1, 'nc/train/counts': 4.0}
    """
    rows = []
    for record in history:
        vectors = {key: value.tolist() for key, value in record.items() if _is_by_class(key, value)}
        for label in range(max(map(len, vectors.values()), default=0)):
            values = {key: vector[label] for key, vector in vectors.items() if label < len(vector)}
            rows.append({"epoch": record["epoch"], "step": record.get("step"), "class": label} | values)
    return rows


def _is_by_class(key: str, value: Any) -> bool:
    # One without a row in the registry is taken to have one entry per class.
    name = LogKey.parse(key).name
    return isinstance(value, Tensor) and value.ndim == 1 and (name not in METRICS or METRICS[name].axis == "class")
