"""The tables of docs/metrics.md are what the command prints."""

import re
from pathlib import Path

from nc_callbacks.metrics import METRICS
from nc_callbacks.metrics.__main__ import tables

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")


def test_the_page_has_the_tables_that_are_printed():
    found = re.search(r"<!-- printed by python -m nc_callbacks\.metrics -->\n(.*?)\n<!-- end -->", PAGE, re.DOTALL)
    assert found[1] == tables(), "Replace them in docs/metrics.md by what python -m nc_callbacks.metrics prints."


def test_every_metric_has_its_place_in_a_row():
    rows = [row for row in tables().splitlines() if row.startswith("| `")]
    names = [name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert sorted(names) == sorted(METRICS)
    assert all(row.replace(r"\|", "").count("|") == 6 for row in rows)


def test_values_at_collapse_are_those_of_the_names():
    cells = {row.split("|")[1].strip(): row.split("|")[3].strip() for row in tables().splitlines() if "|" in row}
    assert cells["`mu1`, `mu2`, `mu_ratio`"] == "–, 0, 0"
    assert cells["`nc2_equinorm`, `nc2_equinorm_weights`"] == "0"
