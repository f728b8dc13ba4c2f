"""The site: built strictly, whole, and loading nothing from elsewhere."""

import re
import shutil
import subprocess
import sys

import pytest

import nc_callbacks
from nc_callbacks import functional
from tests.processes import ROOT

DOCS = ROOT / "docs"
REFERENCE = "".join(path.read_text(encoding="utf-8") for path in sorted((DOCS / "reference").glob("*.md")))


def test_every_public_name_is_in_the_reference():
    for name in nc_callbacks.__all__:
        assert re.search(rf"^::: nc_callbacks\.{name}$", REFERENCE, re.MULTILINE), name
    for name in functional.__all__:
        assert re.search(rf"^::: nc_callbacks\.functional\.{name}$", REFERENCE, re.MULTILINE), name


def test_every_page_is_in_the_navigation():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    listed = re.findall(r"([\w/]+\.md)$", nav, re.MULTILINE)
    assert sorted(listed) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


@pytest.mark.slow
def test_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("mkdocstrings", reason="needs the extra docs: pip install -e '.[docs]'")
    pytest.importorskip("material", reason="needs the extra docs: pip install -e '.[docs]'")
    assert shutil.which("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe)[^>]+src=\"([^\"]+)\"", text)
        loaded += re.findall(r"<link[^>]+rel=\"(?:stylesheet|preconnect|preload|icon)\"[^>]*href=\"([^\"]+)\"", text)
        loaded += re.findall(r"<link[^>]+href=\"([^\"]+)\"[^>]+rel=\"(?:stylesheet|preconnect|preload|icon)\"", text)
        assert not [url for url in loaded if re.match(r"(https?:)?//", url)], page
