"""The table in docs/works_with.md is what the command prints."""

import re
from pathlib import Path

from tests.zoo.table import ROWS, printed

PAGE = (Path(__file__).parents[2] / "docs" / "works_with.md").read_text(encoding="utf-8")


def test_the_page_has_the_table_that_is_printed():
    found = re.search(r"<!-- printed by python -m tests\.zoo -->\n(.*?)\n<!-- end -->", PAGE, re.DOTALL)
    assert found[1] == printed(), "Replace it by what python -m tests.zoo prints."


def test_rows_have_names_of_their_own_and_a_way_out():
    assert len({(row.group, row.name) for row in ROWS}) == len(ROWS)
    assert all("=" in row.remark for row in ROWS if row.refused)
    assert sum(row.group == "timm" for row in ROWS) >= 20
