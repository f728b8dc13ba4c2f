"""The page as a file: one, whole, escaped, and written from the command line too."""

import json
import re
import subprocess
import sys
from html import escape, unescape
from html.parser import HTMLParser
from importlib.resources import files

import numpy as np
import pytest

from nc_callbacks.report import write_report
from nc_callbacks.report.__main__ import main
from tests.report.common import make_failed_run, make_run, make_sweep

ATTACK = "</script><img src=x onerror=document.title='broken'>"


class Outline(HTMLParser):
    """Elements, text and what the page would load."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.addresses, self.handlers = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        self.handlers += [name for name, _ in attributes if name.startswith("on")]

    def handle_data(self, data):
        if self.tags[-1:] != ["script"] and data.strip():
            self.words.append(data.strip())


def outline(folder):
    path = write_report(folder)
    return Outline(path.read_text(encoding="utf-8"))


def test_run(tmp_path):
    page = outline(make_run(tmp_path / "run", ("model.activation=tanh",)))
    text = " ".join(page.words)
    assert "digits · cnn · tanh" in text
    assert "1 min 16 s" in text
    assert "torch 2.9.0" in text
    assert "model.activation=tanh" in text
    assert "centred means classify 99.9 % of the training set" in text
    assert "_target_: models.cnn" in text


def test_sweep(tmp_path):
    page = outline(make_sweep(tmp_path / "sweep"))
    text = " ".join(page.words)
    assert "5 runs over activation × seed" in text
    assert "ValueError: no such activation" in text
    assert page.tags.count("tr") == 6


def test_loads_nothing(tmp_path):
    for folder in (make_run(tmp_path / "run"), make_sweep(tmp_path / "sweep")):
        page = outline(folder)
        assert all(address.startswith(("#", "data:")) for address in page.addresses), page.addresses
        assert page.tags.count("link") == 1
        policy = re.search(r'Security-Policy" content="([^"]*)"', (folder / "report.html").read_text())[1]
        assert "default-src 'none'" in policy
        assert "connect-src" not in policy
        assert not re.search("script-src [^;]*unsafe", policy)


def test_plotly_comes_with_its_licence(tmp_path):
    text = (write_report(make_run(tmp_path / "run"))).read_text(encoding="utf-8")
    assert re.search(r"plotly\.js \(cartesian - minified\) v[\d.]+\n.*\n.*\n\* Licensed under the MIT license", text)
    (licence,) = (files("nc_callbacks.report") / "assets").glob("plotly*LICENSE")
    assert "Permission is hereby granted, free of charge" in licence.read_text()


def test_links_to_the_pages_of_runs(tmp_path):
    make_sweep(tmp_path)
    write_report(tmp_path / "2")
    assert "2/report.html" in outline(tmp_path).addresses


def test_strings_are_escaped(tmp_path):
    folder = tmp_path / "sweep"
    for number in range(2):
        place = folder / f"{number}<img src=x onerror=alert(1)>"
        overrides = (f"model.activation={ATTACK}{number}", f"<b onclick=x>={number}")
        make_run(place, overrides, data={"name": ATTACK}, model={"activation": ATTACK})
    make_failed_run(folder / "9&lt;", (f"model.activation={ATTACK}",))
    (folder / "sweep.csv").write_text(f'subfolder,status,error\n9&lt;,failed<i>,"{ATTACK}"\n')
    for written in (place, folder):
        page = outline(written)
        text = (written / "report.html").read_text()
        assert ATTACK not in text
        assert "<img src=x" not in text
        assert text.count("</script") == page.tags.count("script")
        assert unescape(text).count(ATTACK) >= 2
        assert not {"img", "b onclick", "i"} & set(page.tags)
        assert page.handlers == []
    assert "9&amp;lt;" in text
    assert "failed&lt;i&gt;" in text


SPECIAL = """a&amp;b & <i> "q" 'p' $title"""


@pytest.mark.parametrize("place", ["name", "override", "override's name", "data", "config", "version", "error"])
def test_each_special_character_is_shown_as_it_is(tmp_path, place):
    """Wherever a text of a run stands: `&`, `<` and both quotes come out as they went in."""
    text = SPECIAL.replace("/", "")
    folder = tmp_path / "sweep" / (text if place == "name" else "run")
    overrides = (f"seed={text}",) if place == "override" else (f"{text}=1",) if place == "override's name" else ()
    config = {"data": {"name": text}} if place == "data" else {"other": text} if place == "config" else {}
    make_run(folder, overrides, **config)
    if place == "version":
        summary = {"metrics": {}, "versions": {"torch": text}}
        (folder / "summary.json").write_text(json.dumps(summary))
    if place == "error":
        (folder / "error.json").write_text(json.dumps({"error": text}))
    page = outline(folder)
    assert "i" not in page.tags
    written = write_report(folder).read_text(encoding="utf-8").split("<script type")[0]
    assert escape(text) in written
    assert '"q"' not in written
    assert text in unescape(written)
    # Beside another run it is named by what differs, also where errors are listed.
    (folder / "error.json").write_text(json.dumps({"error": text}))
    make_run(tmp_path / "sweep" / "another", ("seed=1",))
    for page in (written, write_report(tmp_path / "sweep").read_text(encoding="utf-8").split("<script type")[0]):
        # All escaped but `&`, which the reader would see as another text.
        assert escape(text).replace("&amp;", "&") not in page


def test_content_of_scripts_has_no_markup(tmp_path):
    folder = make_run(tmp_path / "a&b<c", (f"seed={ATTACK}",))
    payload = re.search(r'id="payload">(.*?)</script>', write_report(folder).read_text(encoding="utf-8"), re.DOTALL)[1]
    assert not set("<>&") & set(payload)
    assert json.loads(payload)["runs"][0]["name"] == "a&b<c"


def test_several_validation_loaders(tmp_path):
    found = {
        f"nc/val/{name}/dataloader_idx_{i}": np.full(3, 0.5 + i / 4) for name in ("accuracy", "nc1") for i in (0, 1)
    }
    found |= {"nc/val/body.4/nc1/dataloader_idx_1": np.full(3, 0.125), "nc/train/accuracy": np.full(3, 0.9)}
    folder = tmp_path / "sweep"
    for number in (0, 1):
        run = make_run(folder / str(number), (f"seed={number}",), found)
        (run / "looks.npz").unlink()
    text = write_report(folder).read_text(encoding="utf-8")
    assert re.findall(r"<button>(accuracy, val[^<]*)</button>", text) == [
        "accuracy, val, loader 0",
        "accuracy, val, loader 1",
    ]
    assert "Validation accuracy, loader 1: lowest in" in text
    content = json.loads(re.search(r'id="payload">(.*?)</script>', text, re.DOTALL)[1])
    places = {(curve["name"], curve["split"], curve["place"]) for curve in content["runs"][0]["curves"]}
    head = "classifier's input"
    assert places == {
        *((name, f"val, loader {i}", head) for name in ("accuracy", "nc1") for i in (0, 1)),
        ("nc1", "val, loader 1", "body.4"),
        ("accuracy", "train", head),
    }
    text = write_report(folder / "0").read_text(encoding="utf-8")
    assert "50.0 % of the validation set (loader 0), 75.0 % of the validation set (loader 1)" in text


def test_few_files_give_a_page_that_says_so(tmp_path):
    text = " ".join(outline(make_failed_run(tmp_path / "run")).words)
    assert "No values of the callbacks were found" in text
    assert "unfinished" in text


def test_command_line(tmp_path, capsys):
    folder = make_run(tmp_path / "run")
    assert main([str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    assert "digits · cnn · tanh" in (folder / "report.html").read_text(encoding="utf-8")
    assert main([str(tmp_path / "nowhere")]) == 1
    assert "is no run and no sweep" in capsys.readouterr().err


def test_module_runs_without_a_word_of_its_own(tmp_path):
    folder = make_run(tmp_path / "run")
    command = [sys.executable, "-W", "error", "-m", "nc_callbacks.report", str(folder)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    assert (folder / "report.html").is_file()
