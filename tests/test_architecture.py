"""The drawing of the rooms is that of the contracts."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is new in Python 3.11")


@pytest.fixture(scope="module")
def rooms():
    spec = importlib.util.spec_from_file_location("draw_rooms", ROOT / "docs" / "draw_rooms.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_drawing_is_up_to_date(rooms):
    assert rooms.PICTURE.read_text() == rooms.drawing(), "run python docs/draw_rooms.py"


def test_every_room_stands_in_it(rooms):
    package = ROOT / "nc_callbacks"
    there = {path.parent.name for path in package.glob("*/__init__.py")} - {"conf"}
    drawn = {room for floor in rooms.floors() for room in floor}
    assert there <= drawn
    assert all(rooms.purpose(room) for room in drawn)
