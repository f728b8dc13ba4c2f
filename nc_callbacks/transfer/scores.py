"""Scores of a source: their names and directions, a row each, and the ranking that they make."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

LARGER = {
    "lda_accuracy": True,
    "cm_accuracy": True,
    "ncc_accuracy": True,
    "logme": True,
    "h_score": True,
    "h_score_regularised": True,
    "nc1": False,
    "mu_ratio": False,
}
"""Names of the scores, and whether the larger is the better."""


@dataclass(frozen=True)
class SourceScore:
    """How well a backbone's features suit a target."""

    name: str
    cm_accuracy: float
    """Test accuracy of the centred class means, a share; NaN where the backbone failed, as all scores."""
    nc1: float
    """tr(Σ_W Σ_B⁺)/k of the training features; smaller is more collapsed."""
    mu_ratio: float
    """mu2/mu1 of the training features' class means; near 0 for orthogonal ones."""
    seconds: float
    """Of the pass and the scores, without the making of the backbone; of a layer, those of its backbone."""
    error: str = ""
    """The error; empty where there was none."""
    layer: str = ""
    """Name of the module whose output the features are; empty for the backbone's own."""
    lda_accuracy: float = math.nan
    """Test accuracy of the whitened class means (`nc_callbacks.functional.whitened_weight`), a share."""
    ncc_accuracy: float = math.nan
    """Test accuracy of the nearest class mean, a share."""
    logme: float = math.nan
    """`nc_callbacks.functional.log_evidence` of the training features, in nats a sample."""
    h_score: float = math.nan
    """`nc_callbacks.functional.h_score` of the training features."""
    h_score_regularised: float = math.nan
    """The same, regularised."""


class Ranking(list[SourceScore]):
    """Scores of sources, best first; prints as a table.

    Args:
        scores: In any order.
        by: Name of the score to rank by.
        on: Size and shape of the data that they are of, for the table.

    Raises:
        ValueError: There is no such score.

    Example:
        >>> print(Ranking([SourceScore("a", 0.5, 2.0, 0.1, 0.1), SourceScore("b", 0.7, 3.0, 0.1, 0.1)], "nc1"))
        by nc1  lda_accuracy  cm_accuracy  ncc_accuracy  logme  h_score  h_score_reg.  nc1  mu_ratio  seconds
        a                nan       0.5000           nan    nan      nan           nan    2     0.100      0.1
        b                nan       0.7000           nan    nan      nan           nan    3     0.100      0.1
    """

    def __init__(self, scores: Iterable[SourceScore], by: str = "lda_accuracy", on: str = "") -> None:
        check_name(by)
        self.by, self.on = by, on
        sign = -1 if LARGER[by] else 1

        def place(score: SourceScore) -> tuple[bool, bool, float]:
            value = getattr(score, by)
            return bool(score.error), math.isnan(value), 0.0 if math.isnan(value) else sign * value

        super().__init__(sorted(scores, key=place))

    def __str__(self) -> str:
        names = [f"by {self.by}", *(_title(name) for name in LARGER), "seconds"]
        rows = [[_named(score), *_numbers(score)] for score in self]
        errors = [" ".join(score.error.split()) for score in self]
        shown = [row for row, error in zip(rows, errors, strict=True) if not error]
        widths = [max(map(len, column)) for column in zip(names, *shown, strict=True)]
        widths[0] = max(widths[0], *(len(row[0]) for row in rows)) if rows else widths[0]
        lines = [_line(names, widths)]
        for row, error in zip(rows, errors, strict=True):
            lines.append(f"{row[0]:<{widths[0]}}  {error}" if error else _line(row, widths))
        return "\n".join([*([self.on] if self.on else []), *lines])

    def _repr_html_(self) -> str:
        """The table of a notebook: the scores that it ranks by in bold."""
        names = ["", *(_title(name) for name in LARGER), "seconds"]
        head = "".join(f"<th>{escape(name)}</th>" for name in names)
        caption = f"<caption>{escape(f'By {self.by}' + (f', on {self.on}' if self.on else ''))}</caption>"
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{''.join(map(self._row, self))}</tbody></table>"

    def _row(self, score: SourceScore) -> str:
        first = f"<th>{escape(_named(score))}</th>"
        if score.error:
            return f"<tr>{first}<td colspan='{len(LARGER) + 1}'>{escape(' '.join(score.error.split()))}</td></tr>"
        own = (*LARGER, "seconds")
        cells = (f"<b>{cell}</b>" if name == self.by else cell for name, cell in zip(own, _numbers(score), strict=True))
        return f"<tr>{first}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"

    def to_frame(self) -> Any:
        """A pandas DataFrame, a row per score.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("to_frame() needs pandas: pip install pandas.") from error

        return pd.DataFrame([asdict(score) for score in self], columns=list(SourceScore.__dataclass_fields__))


def check_name(by: str) -> None:
    """Refuse the name of a score that there is not.

    Raises:
        ValueError: It is none.
    """
    if by not in LARGER:
        raise ValueError(f"by must be one of {', '.join(LARGER)}, got {by!r}.")


def _title(name: str) -> str:
    return "h_score_reg." if name == "h_score_regularised" else name


def _named(score: SourceScore) -> str:
    return f"{score.name} {score.layer}".rstrip()


def _numbers(score: SourceScore) -> list[str]:
    formats = {"nc1": ".3g", "mu_ratio": ".3f"}
    return [*(format(getattr(score, name), formats.get(name, ".4f")) for name in LARGER), f"{score.seconds:.1f}"]


def _line(cells: list[str], widths: list[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    return "  ".join([f"{first[0]:<{first[1]}}", *(f"{cell:>{width}}" for cell, width in others)])
