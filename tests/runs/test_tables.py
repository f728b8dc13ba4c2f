"""Cells that a spreadsheet would run are texts; numbers stay numbers."""

import csv

import pytest

from nc_callbacks.runs.tables import harmless, write_table


@pytest.mark.parametrize(
    "cell",
    [
        "=1+1",
        "@SUM(A1)",
        "+1+cmd|' /C calc'!A0",
        "-1+1",
        "-cmd",
        "-",
        "+",
        "\t=1",
        "\r=1",
        "\n=1",
        " =1",
        "-inf",
        "--1",
    ],
)
def test_what_would_be_run(cell):
    assert harmless(cell) == f"'{cell}"


@pytest.mark.parametrize("cell", ["-0.5", "+3", "-1e-5", "-.5", "1=1", "a@b", "tanh", "", "'=1", -0.5, None, 3])
def test_what_stays(cell):
    assert harmless(cell) is cell


def test_table(tmp_path):
    rows = [{"=a": "=1", "b": -0.5}, {"b": None, "more": 1}]
    write_table(tmp_path / "t.csv", ["=a", "b"], rows)
    with open(tmp_path / "t.csv", newline="") as file:
        assert list(csv.reader(file)) == [["'=a", "b"], ["'=1", "-0.5"], ["", ""]]
