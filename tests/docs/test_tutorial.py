"""The tutorial, from the empty file to the page, as it is printed."""

import re

import pytest

from tests.docs.common import blocks
from tests.processes import ROOT, python

PAGE = ROOT / "docs" / "start" / "tutorial.md"


@pytest.mark.slow
def test_prints_what_the_page_says(tmp_path):
    (tmp_path / "first.py").write_text("".join(blocks(PAGE, "python")))
    run = python(tmp_path / "first.py", folder=tmp_path)
    assert run.returncode == 0, run.stderr
    (expected,) = blocks(PAGE, "text")
    lines = run.stdout.strip().splitlines()[-len(expected.splitlines()) :]
    for line, said in zip(lines, expected.splitlines(), strict=True):
        number = r"\d+\.\d+"
        assert re.sub(number, "#", line) == re.sub(number, "#", said)
        # Machines round differently, and training makes more of it.
        values = [list(map(float, re.findall(number, text))) for text in (line, said)]
        assert values[0] == pytest.approx(values[1], rel=0.3, abs=0.05)
    assert (tmp_path / "first" / "report.html").is_file()
