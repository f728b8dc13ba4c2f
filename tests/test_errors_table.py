"""docs/errors.md: each row names a test that is there, and messages that the package has."""

import re
from pathlib import Path

from tests.callbacks.common import samples

X, Y = samples()

ROOT = Path(__file__).parents[1]
ROWS = [line.split(" | ") for line in (ROOT / "docs" / "errors.md").read_text().splitlines() if "::" in line]


def test_the_table_names_tests_that_are_there():
    assert len(ROWS) > 60
    for row in ROWS:
        assert len(row) == 4, row
        named = re.findall(r"`(tests/[\w/]+\.py)::([\w:]+)`", row[3])
        assert named, row
        for file, path in named:
            source = (ROOT / file).read_text()
            for part in path.split("::"):
                assert re.search(rf"\b(?:def|class) {part}\b", source), (file, part)


def test_the_table_has_the_messages_of_the_package():
    source = "".join(path.read_text() for path in sorted((ROOT / "nc_callbacks").rglob("*.py")))
    source = re.sub(r"""["']\s*\n\s*f?["']""", "", source)
    for row in ROWS:
        for message in re.findall(r"`([^`]+)`", row[2]):
            for fragment in re.split("'…'|…", message):
                assert fragment in source, fragment
