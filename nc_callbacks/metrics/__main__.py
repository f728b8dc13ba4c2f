"""`python -m nc_callbacks.metrics` prints the tables of metrics of docs/metrics.md, one a callback, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from nc_callbacks.metrics import METRICS, Metric

HEADER = ("name", "definition", "at collapse", "logged of", "source")


def tables() -> str:
    """A table of each callback: one row per metric, or per group of metrics that share a definition."""
    names = dict.fromkeys(metric.callback for metric in METRICS.values())
    return "\n\n".join(f"`{name}`\n\n{_table([m for m in METRICS.values() if m.callback == name])}" for name in names)


def _table(metrics: list[Metric]) -> str:
    groups: dict[tuple[str, str], list[Metric]] = {}
    for metric in sorted(metrics, key=lambda metric: metric.axis != "scalar"):
        groups.setdefault((metric.definition, metric.axis), []).append(metric)
    return "\n".join(map(_line, (HEADER, ["---"] * len(HEADER), *map(_cells, groups.values()))))


def _cells(group: list[Metric]) -> list[str]:
    first = group[0]
    axis = "" if first.axis == "scalar" else f" (by {first.axis})"
    names = ", ".join(f"`{metric.name}`" for metric in group)
    collapse = _joined([_at_collapse(metric) for metric in group])
    places = _joined(["every layer" if metric.layers else "the classifier" for metric in group])
    return [names, first.definition + axis, collapse, places, first.source]


def _at_collapse(metric: Metric) -> str:
    return metric.ideal_text or ("–" if metric.ideal is None else f"{metric.ideal}")


def _joined(texts: list[str]) -> str:
    """One a metric, or once where all are alike."""
    return texts[0] if len(set(texts)) == 1 else ", ".join(texts)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    print(tables())
