"""The pages of the documentation, and what is in them."""

import re
import shutil

from tests.processes import ROOT, python

PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs" / "start").glob("*.md")),
    *sorted((ROOT / "docs/howto").glob("*.md")),
]


def blocks(page, language):
    """The code blocks of a page, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def pasted(block, folder, *arguments):
    """What a block prints that is pasted into a file beside the folder of examples."""
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "pasted.py").write_text(block, encoding="utf-8")
    run = python(folder / "pasted.py", *arguments, folder=folder)
    assert run.returncode == 0, run.stderr
    return run.stdout
