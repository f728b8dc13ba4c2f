"""Draw the rooms of the package from the import contracts in pyproject.toml: `python docs/draw_rooms.py`.

Writes docs/images/rooms.svg: a floor per layer, each room with what its docstring says it is and which rooms it may
import. Python 3.11 or newer.
"""

from __future__ import annotations

import ast
from html import escape
from pathlib import Path
from typing import Any

import tomllib

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "rooms.svg"

WIDTH, HEIGHT, GAP, MARGIN = 960, 78, 12, 16


def contracts() -> list[dict[str, Any]]:
    """The import contracts."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]


def floors() -> list[list[str]]:
    """Rooms by floor, from the top, as the contract of layers has them."""
    layers = next(contract for contract in contracts() if contract["type"] == "layers")["layers"]
    return [[room.strip() for room in layer.split("|")] for layer in layers]


def imports(room: str) -> str:
    """What a room may import of the package, in words."""
    rooms = floors()
    place = next(number for number, floor in enumerate(rooms) if room in floor)
    below = [other for floor in rooms[place + 1 :] for other in floor]
    refused = {
        module.removeprefix("nc_callbacks.")
        for contract in contracts()
        if contract["type"] == "forbidden" and f"nc_callbacks.{room}" in contract["source_modules"]
        for module in contract["forbidden_modules"]
    }
    allowed = [other for other in below if other not in refused]
    if not below:
        return "imports no other room"
    return "imports: " + ("all below" if allowed == below else ", ".join(allowed))


def purpose(room: str) -> str:
    """First sentence of a room's docstring."""
    folder = ROOT / "nc_callbacks" / room
    source = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    text = ast.get_docstring(ast.parse(source.read_text())) or ""
    return text.partition("\n")[0].partition(": `")[0].rstrip(".").replace("`", "")


def lines(text: str, width: int) -> list[str]:
    """A text in at most two lines of so many letters."""
    found = [""]
    for word in text.split():
        if len(found[-1]) + len(word) < width:
            found[-1] = f"{found[-1]} {word}".strip()
        else:
            found.append(word)
    return found[:1] + ([found[1] + (" …" if len(found) > 2 else "")] if len(found) > 1 else [])


def box(room: str, left: float, top: float, width: float) -> str:
    """A room as SVG."""
    text = "".join(
        f'<text x="{left + 12:.0f}" y="{top + 40 + 13 * number:.0f}" class="what">{escape(line)}</text>'
        for number, line in enumerate(lines(purpose(room), int(width / 5.6)))
    )
    return (
        f'<rect x="{left:.0f}" y="{top:.0f}" width="{width:.0f}" height="{HEIGHT}" rx="6"/>'
        f'<text x="{left + 12:.0f}" y="{top + 22:.0f}" class="room">{escape(room)}</text>{text}'
        f'<text x="{left + 12:.0f}" y="{top + HEIGHT - 8:.0f}" class="imports">{escape(imports(room))}</text>'
    )


def drawing() -> str:
    """The whole picture as SVG."""
    parts, top = [], MARGIN
    for floor in floors():
        width = (WIDTH - 2 * MARGIN - GAP * (len(floor) - 1)) / len(floor)
        parts += [box(room, MARGIN + place * (width + GAP), top, width) for place, room in enumerate(floor)]
        top += HEIGHT + GAP
    style = (
        "rect{fill:#f4f6fa;stroke:#5b6b8c}text{font-family:sans-serif;fill:#1c2433}"
        ".room{font-size:15px;font-weight:bold}.what{font-size:11px;fill:#44506a}"
        ".imports{font-size:10.5px;font-style:italic;fill:#5b6b8c}"
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}">'
    title = "<title>Rooms of nc_callbacks: each may import what stands below it</title>"
    return f"{head}{title}<style>{style}</style>{''.join(parts)}</svg>\n"


if __name__ == "__main__":
    PICTURE.write_text(drawing())
    print(PICTURE)
