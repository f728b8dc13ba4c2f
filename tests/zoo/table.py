"""The whole table, and how it is printed."""

from __future__ import annotations

from itertools import groupby

from tests.zoo.rows import adapters, heads, lightning, text, timm, trainers, vision
from tests.zoo.setups import Row

ROWS: list[Row] = [
    *(vision.ROWS + timm.ROWS + text.ROWS + adapters.ROWS),
    *(heads.ROWS + lightning.ROWS + trainers.ROWS),
]


def printed() -> str:
    """The table in Markdown, a section a library."""
    right = [row for row in ROWS if not row.refused]
    lines = [f"{len(ROWS)} set-ups: {len(right)} right, {len(ROWS) - len(right)} refused before training."]
    for group, rows in groupby(ROWS, key=lambda row: row.group):
        lines += ["", f"### {group}", "", "| set-up | outcome | passed, said or left out |", "| --- | --- | --- |"]
        lines += [_line(row) for row in rows]
    return "\n".join(lines)


def _line(row: Row) -> str:
    said = [f"«{text}»" for text in (row.refused, row.warns) if text]
    cells = [row.name, "refused" if row.refused else "right", "; ".join([*([row.remark] if row.remark else []), *said])]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
