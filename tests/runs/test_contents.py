"""Broken and hostile files in a run's folder: one sentence that names the file; nothing in them is run."""

import itertools
import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import yaml

from nc_callbacks.report.__main__ import main
from nc_callbacks.runs import contents
from nc_callbacks.runs.folder import is_finished, read
from nc_callbacks.runs.page import write_report
from tests.report.common import make_run, make_sweep

DEEP = "[" * 100_000
SUMMARIES = {
    "empty": "",
    "truncated": '{"metrics": {"nc/train/nc1": 0.5',
    "binary": b"\x00\xff\xfe\x80",
    "not UTF-8": '{"metrics": {"é": 1}}'.encode("latin-1"),
    "list": "[]",
    "text": '"finished"',
    "null": "null",
    "key twice": '{"metrics": {}, "metrics": {"nc/train/nc1": 0}}',
    "metrics a list": '{"metrics": [1]}',
    "metric a text": '{"metrics": {"nc/train/nc1": "0.5"}}',
    "metric a truth value": '{"metrics": {"nc/train/nc1": true}}',
    "too large a number": '{"metrics": {"nc/train/nc1": 1' + 400 * "0" + "}}",
    "epochs a text": '{"metrics": {}, "epochs": "3"}',
    "epochs NaN": '{"metrics": {}, "epochs": NaN}',
    "seconds infinite": '{"metrics": {}, "seconds": Infinity}',
    "seconds negative": '{"metrics": {}, "seconds": -1}',
    "versions a list": '{"metrics": {}, "versions": ["torch"]}',
    "deep": DEEP,
}
METRICS = {
    "empty": "",
    "binary": b"\x00\xff\xfe\x80",
    "no epoch": "step,nc/train/nc1\n0,1.0\n",
    "no number": "epoch,nc/train/nc1\n0,half\n",
    "no epoch's number": "epoch,nc/train/nc1\n,1.0\n",
    "infinite epoch": "epoch,nc/train/nc1\ninf,1.0\n",
    "huge epoch": "epoch,nc/train/nc1\n1e30,1.0\n",
    "cell too many": "epoch,nc/train/nc1\n0,1.0,2.0\n",
    "column twice": "epoch,nc/train/nc1,nc/train/nc1\n0,1.0,2.0\n",
    "huge cell": "epoch,nc/train/nc1\n0," + 200_000 * "1" + "\n",
}
CONFIGS = {
    "broken": "{: broken, [",
    "list": "- a\n",
    "number": "3",
    "key twice": "data:\n  name: a\n  name: b\n",
    "unhashable key": "? [a]\n: 1\n",
    "impossible date": "date: 2020-99-99\n",
    "deep": DEEP,
    "binary": b"\x00\xff\xfe\x80",
}
OVERRIDES = {"mapping": "seed: 1\n", "text": "seed=1", "broken": "[", "binary": b"\xff\xfe\x00"}
ERRORS = {"empty": "", "list": "[]", "no error": "{}", "error a number": '{"error": 3}'}
FILES = {
    "summary.json": SUMMARIES,
    "metrics.csv": METRICS,
    ".hydra/config.yaml": CONFIGS,
    ".hydra/overrides.yaml": OVERRIDES,
    "error.json": ERRORS,
    "looks.npz": {"empty": "", "text": "looks", "binary": b"PK\x03\x04\x00\xff"},
}
CASES = [
    pytest.param(name, text, id=f"{name}, {case}") for name, cases in FILES.items() for case, text in cases.items()
]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def refused(folder, path):
    """Whether reading fails with one line that begins with the path."""
    with pytest.raises(ValueError, match="cannot be read") as caught:
        read(folder)
    message = str(caught.value)
    assert message.startswith(f"{path} cannot be read: ")
    assert message.endswith(".")
    assert "\n" not in message
    assert len(message) < len(str(path)) + 340


@pytest.mark.parametrize(("name", "content"), CASES)
def test_broken_file_is_named_in_a_sentence(tmp_path, name, content):
    folder = make_run(tmp_path / "run")
    write(folder / name, content)
    refused(folder, folder / name)


@pytest.mark.parametrize("name", list(FILES))
def test_folder_in_the_place_of_a_file(tmp_path, name):
    folder = make_run(tmp_path / "run")
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    refused(folder, folder / name)


@pytest.mark.parametrize("name", list(FILES))
def test_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path, name):
    folder = make_run(tmp_path / "run")
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    refused(folder, folder / name)


@pytest.mark.parametrize("name", list(FILES))
def test_huge_file_is_not_read(tmp_path, name):
    folder = make_run(tmp_path / "run")
    with open(folder / name, "wb") as file:
        file.truncate(contents.MAX_TABLE_BYTES + 1)
    refused(folder, folder / name)


KEY = "nc/train/mu1_per_class"
GOOD = {KEY: np.ones((2, 4), np.float32), f"{KEY}@epochs": np.array([1, 2]), f"{KEY}@step": np.array(1)}


@pytest.mark.parametrize(
    "changed",
    [
        {KEY: np.ones((3, 4))},
        {KEY: np.ones(2)},
        {KEY: np.ones((2, 0))},
        {KEY: np.ones((2, 4, 4))},
        {KEY: np.ones((2, 4, 4, 4))},
        {KEY: np.array([["a"], ["b"]])},
        {KEY: np.ones((2, 4), complex)},
        {f"{KEY}@epochs": None},
        {f"{KEY}@epochs": np.array([1.0, np.nan])},
        {f"{KEY}@epochs": np.array(1)},
        {f"{KEY}@step": None},
        {f"{KEY}@step": np.array(0)},
        {f"{KEY}@step": np.array([1, 2])},
        {"nc/train/class_mean_cosines": np.ones((2, 4, 3)), "nc/train/class_mean_cosines@epochs": np.array([1, 2])},
    ],
    ids=itertools.count(),
)
def test_looks_of_wrong_shapes_and_kinds(tmp_path, changed):
    folder = make_run(tmp_path / "run")
    arrays = {key: array for key, array in (GOOD | changed).items() if array is not None}
    arrays |= {"nc/train/class_mean_cosines@step": np.array(1)} if "nc/train/class_mean_cosines" in arrays else {}
    np.savez(folder / "looks.npz", **arrays)
    refused(folder, folder / "looks.npz")


def test_looks_that_grow_when_unpacked(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "run")
    monkeypatch.setattr(contents, "MAX_TABLE_BYTES", 10_000)
    np.savez_compressed(folder / "looks.npz", **(GOOD | {KEY: np.zeros((2, 2_000), np.float32)}))
    assert (folder / "looks.npz").stat().st_size < 10_000
    refused(folder, folder / "looks.npz")


class Trap:
    """Makes a folder where it is unpickled, or where YAML makes an object of it."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_trap_works(tmp_path):
    """So that the tests below would notice."""
    pickle.loads(pickle.dumps(Trap(tmp_path / "a")))
    yaml.unsafe_load(f"!!python/object/apply:os.mkdir ['{tmp_path / 'b'}']")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


@pytest.mark.parametrize("member", [KEY, f"{KEY}@epochs", f"{KEY}@step"])
def test_pickles_are_not_loaded(tmp_path, member):
    folder = make_run(tmp_path / "run")
    trap = np.empty(2, dtype=object)
    trap[:] = [Trap(tmp_path / "sprung")] * 2
    np.savez(folder / "looks.npz", **(GOOD | {member: trap}))
    refused(folder, folder / "looks.npz")
    # As a bare pickle in place of an array, and of the archive.
    with zipfile.ZipFile(folder / "looks.npz", "w") as archive:
        for name in GOOD:
            archive.writestr(f"{name}.npy", pickle.dumps(Trap(tmp_path / "sprung")))
    refused(folder, folder / "looks.npz")
    (folder / "looks.npz").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    refused(folder, folder / "looks.npz")
    assert not (tmp_path / "sprung").exists()


def test_pickles_that_say_that_a_fit_has_ended_are_not_loaded(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "summary.json").unlink()
    trap = np.empty(1, dtype=object)
    trap[:] = [Trap(tmp_path / "sprung")]
    np.savez(folder / "looks.npz", **(GOOD | {contents.ENDED: trap}))
    refused(folder, folder / "looks.npz")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", [".hydra/config.yaml", ".hydra/overrides.yaml"])
@pytest.mark.parametrize("tag", ["object/apply:os.mkdir ['{}']", "object/new:os.mkdir ['{}']", "tuple ['{}']"])
def test_yaml_makes_no_objects(tmp_path, name, tag):
    folder = make_run(tmp_path / "run")
    write(folder / name, "data: !!python/" + tag.format(tmp_path / "sprung"))
    refused(folder, folder / name)
    assert not (tmp_path / "sprung").exists()


def test_what_is_odd_but_readable(tmp_path):
    folder = make_run(tmp_path / "run")
    write(folder / "summary.json", '\ufeff{"metrics": {"nc/train/nc1": NaN, "nc/train/nc3": null}, "epochs": 3}')
    write(folder / "metrics.csv", "epoch,step,nc/train/nc4\n0,1,1e300\n\n1,2,0.5\n2,3\n")
    write(folder / ".hydra" / "config.yaml", "data: digits\nmodel: [1]\n")
    run = read(folder)[1][0]
    assert (run.status, run.epochs) == ("finished", 3)
    assert np.isnan([run.final["nc/train/nc1"], run.final["nc/train/nc3"]]).all()
    assert run.curves["nc/train/nc4"][1].tolist() == [np.inf, 0.5]
    assert run.choice("data") == run.choice("model") == {}
    assert "digits" in write_report(folder).read_text(encoding="utf-8")


@pytest.mark.parametrize("content", [*SUMMARIES.values(), None], ids=[*SUMMARIES, "missing"])
def test_only_a_whole_summary_counts_as_finished(tmp_path, content):
    folder = make_run(tmp_path / "run")
    assert is_finished(folder)
    (folder / "summary.json").unlink()
    if content is not None:
        write(folder / "summary.json", content)
    assert not is_finished(folder)


def test_a_run_that_left_an_error_is_not_finished(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "error.json").write_text(json.dumps({"error": "OSError: disk\nfull"}))
    assert not is_finished(folder)
    run = read(folder)[1][0]
    assert (run.status, run.error, run.metrics) == ("failed", "OSError: disk full", {})


def test_a_broken_run_does_not_cost_the_page_of_its_sweep(tmp_path, capsys):
    sweep = make_sweep(tmp_path / "sweep")
    write(sweep / "1" / "summary.json", "")
    write(sweep / "2" / "looks.npz", b"PK")
    write(sweep / "3" / ".hydra" / "overrides.yaml", "[")
    write(sweep / "sweep.csv", b"\xff\xfe\x00")
    with pytest.warns(UserWarning, match=r"sweep\.csv cannot be read"):
        runs = read(sweep)[1]
    assert [run.status for run in runs] == ["finished", "unreadable", "unreadable", "unreadable", "unfinished"]
    assert runs[1].error.startswith(f"{sweep / '1' / 'summary.json'} cannot be read: ")
    assert runs[1].overrides == {"model.activation": "tanh", "seed": "1"}
    with pytest.warns(UserWarning, match=r"sweep\.csv cannot be read"):
        assert main([str(sweep)]) == 0
    text = (sweep / "report.html").read_text(encoding="utf-8")
    for name in ("1/summary.json", "2/looks.npz", "3/.hydra/overrides.yaml"):
        assert f"{sweep / name} cannot be read: " in text
    assert "3 cannot be read" in text
    assert "1 did not end" in text


def test_command_says_what_is_broken(tmp_path, capsys):
    folder = make_run(tmp_path / "run")
    write(folder / "summary.json", '{"metrics": {')
    assert main([str(folder)]) == 1
    assert capsys.readouterr().err.startswith(f"No page: {folder / 'summary.json'} cannot be read: ")
