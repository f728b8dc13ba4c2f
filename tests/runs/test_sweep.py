"""What is read from, and written to, a sweep's folder."""

import csv
import json
import math

import pytest
from omegaconf import OmegaConf

from nc_callbacks.runs.sweep import print_sweep, read_runs, resume_problem, write_sweep

KEYS = ["val/accuracy", "nc/train/nc1", "nc/train/absent"]


def make_run(folder, subfolder, overrides, metrics=None, error=None):
    (folder / subfolder / ".hydra").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(overrides), folder / subfolder / ".hydra" / "overrides.yaml")
    if metrics is not None:
        summary = {"metrics": metrics, "epochs": 3, "seconds": 1.5, "versions": {}}
        (folder / subfolder / "summary.json").write_text(json.dumps(summary))
    if error is not None:
        (folder / subfolder / "error.json").write_text(json.dumps({"error": error, "traceback": ""}))


@pytest.fixture
def folder(tmp_path):
    values = {"tanh": [0.9, 0.95, 0.97], "relu": [0.8, 0.7, 0.9]}
    for start, (activation, accuracies) in enumerate(values.items()):
        for seed, accuracy in enumerate(accuracies):
            make_run(
                tmp_path,
                str(9 * start + seed),
                [f"model.activation={activation}", f"seed={seed}", "+trainer.precision=32", "resume=true"],
                {"val/accuracy": accuracy, "nc/train/nc1": None if activation == "relu" else 2.0 * seed},
            )
    make_run(
        tmp_path, "20", ["model.activation=elu", "seed=0", "+trainer.precision=32"], error='ValueError: a\nb [c], "d"'
    )
    make_run(tmp_path, "100", ["model.activation=elu", "seed=1", "+trainer.precision=32"])
    return tmp_path


def test_runs_as_their_folders_tell(folder):
    runs = read_runs(folder)
    assert [run.name for run in runs] == ["0", "1", "2", "9", "10", "11", "20", "100"]
    assert [run.status for run in runs] == ["finished"] * 6 + ["failed", "unfinished"]
    assert runs[4].overrides == {"model.activation": "relu", "seed": "1", "trainer.precision": "32"}
    assert runs[4].metrics["val/accuracy"] == 0.7
    assert math.isnan(runs[4].metrics["nc/train/nc1"])
    assert runs[6].error == 'ValueError: a b [c], "d"'
    assert runs[6].metrics == runs[7].metrics == {}


def test_a_run_that_failed_after_its_summary_has_failed(tmp_path):
    make_run(tmp_path, "0", [], {"val/accuracy": 1.0}, "OSError: disk full")
    assert [run.status for run in read_runs(tmp_path)] == ["failed"]


def test_sweep_csv(folder):
    write_sweep(read_runs(folder), folder)
    with open(folder / "sweep.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    overrides = ["model.activation", "seed", "trainer.precision"]
    assert list(rows[0]) == ["subfolder", "status", "error", *overrides, "val/accuracy", "nc/train/nc1", "seconds"]
    assert [row["val/accuracy"] for row in rows] == ["0.9", "0.95", "0.97", "0.8", "0.7", "0.9", "", ""]
    assert [row["nc/train/nc1"] for row in rows] == ["0.0", "2.0", "4.0", "", "", "", "", ""]
    assert [row["seconds"] for row in rows] == ["1.5"] * 6 + ["", ""]
    assert rows[6]["error"] == 'ValueError: a b [c], "d"'
    assert rows[7]["status"] == "unfinished"


def test_sweep_csv_runs_nothing_in_a_spreadsheet(tmp_path):
    make_run(tmp_path, "=0", ["+x==cmd|' /C calc'!A0", "y=-0.5", "@z=1"], {"=nc": -0.25}, error=None)
    make_run(tmp_path, "1", ["x=-1+1"], error="@SUM(A1)")
    make_run(tmp_path, "2", [])
    write_sweep(read_runs(tmp_path), tmp_path)
    with open(tmp_path / "sweep.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["subfolder", "status", "error", "x", "y", "'@z", "'=nc", "seconds"]
    assert sorted(rows) == [
        ["'=0", "finished", "", "'=cmd|' /C calc'!A0", "-0.5", "1", "-0.25", "1.5"],
        ["1", "failed", "'@SUM(A1)", "'-1+1", "", "", "", ""],
        ["2", "unfinished", "", "", "", "", "", ""],
    ]
    # What it says of runs whose folder says nothing is found again.
    (tmp_path / "=3" / ".hydra").mkdir(parents=True)
    (tmp_path / "sweep.csv").write_text("subfolder,status,error\n'=3,failed,killed\n")
    assert {run.name: run.error for run in read_runs(tmp_path)}["=3"] == "killed"


def test_nested_subfolders(tmp_path):
    make_run(tmp_path, "tanh/0", ["model.activation=tanh"], {"val/accuracy": 1.0})
    make_run(tmp_path, "relu/0", ["model.activation=relu"], error="ValueError: x")
    assert {run.name: run.status for run in read_runs(tmp_path)} == {"tanh/0": "finished", "relu/0": "failed"}


def test_broken_summary_is_no_finished_run(tmp_path):
    make_run(tmp_path, "0", ["seed=0"], {"val/accuracy": 1.0})
    (tmp_path / "0" / "summary.json").write_text("")
    (run,) = read_runs(tmp_path)
    assert (run.status, run.overrides, run.metrics) == ("unreadable", {"seed": "0"}, {})
    write_sweep([run], tmp_path)
    assert "summary.json cannot be read" in (tmp_path / "sweep.csv").read_text()


def test_table_shows_brackets_as_they_are(tmp_path, capsys):
    make_run(tmp_path, "0", ["names=[cat,dog]"], {"val/accuracy": 1.0})
    make_run(tmp_path, "1", ["names=[/bold]"], {"val/accuracy": 1.0})
    print_sweep(read_runs(tmp_path), tmp_path, KEYS)
    printed = capsys.readouterr().out
    assert "[cat,dog]" in printed
    assert "[/bold]" in printed


def test_table(folder, capsys):
    print_sweep(read_runs(folder), folder, KEYS)
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines()]
    # (0.9 + 0.95 + 0.97) / 3, and the root of their squared deviations over 3 - 1; nc1 is 0, 2, 4.
    mean = 2.82 / 3
    spread = math.sqrt(((0.9 - mean) ** 2 + (0.95 - mean) ** 2 + (0.97 - mean) ** 2) / 2)
    place = lines.index(["tanh", "3", f"{mean:.3g}", "2"])
    assert lines[place + 1] == ["±", f"{spread:.2g}", "±", "2"]
    assert ["relu", "3", "0.8", "not", "finite"] in lines
    assert ["elu", "0", "of", "2"] in lines
    # Neither what does not differ nor what no run has.
    assert "precision" not in printed.split("20 (")[0]
    assert "absent" not in printed
    assert '20 (model.activation=elu seed=0 trainer.precision=32) failed: ValueError: a b [c], "d"' in printed
    assert "100 (model.activation=elu seed=1 trainer.precision=32) unfinished" in printed
    assert printed.rstrip().endswith(f"Sweep folder: {folder}")


def test_table_of_one_run_has_no_spread(tmp_path, capsys):
    make_run(tmp_path, "0", ["seed=0"], {"val/accuracy": 0.875})
    print_sweep(read_runs(tmp_path), tmp_path, KEYS)
    printed = capsys.readouterr().out.split("seeds:")[1]
    assert "0.875" in printed
    assert "±" not in printed


def test_resume_problem(tmp_path):
    assert resume_problem(tmp_path, ["seed=0,1"]) is None
    assert "holds no sweep" in resume_problem(tmp_path, ["seed=0,1", "resume=true"])
    started = {"hydra": {"overrides": {"task": ["seed=0,1"]}}}
    OmegaConf.save(OmegaConf.create(started), tmp_path / "multirun.yaml")
    assert "holds a sweep" in resume_problem(tmp_path, ["seed=0,1"])
    assert "holds a sweep" in resume_problem(tmp_path, ["seed=0,1", "resume=false"])
    assert resume_problem(tmp_path, ["resume=True", "seed=0,1"]) is None
    problem = resume_problem(tmp_path, ["seed=0,1,2", "resume=true"])
    assert "'seed=0,1'" in problem
    assert "'seed=0,1,2'" in problem
    # As it stands in the folder after it was resumed once.
    OmegaConf.save(
        OmegaConf.create({"hydra": {"overrides": {"task": ["seed=0,1", "resume=true"]}}}), tmp_path / "multirun.yaml"
    )
    assert resume_problem(tmp_path, ["seed=0,1", "resume=true"]) is None


def test_table_has_the_one_format_of_numbers(tmp_path, capsys):
    """A minus that is one, and powers of ten."""
    for seed, value in enumerate((-2e-7, -4e-7)):
        make_run(tmp_path, str(seed), [f"seed={seed}"], {"val/accuracy": value})
    print_sweep(read_runs(tmp_path), tmp_path, KEYS)
    printed = capsys.readouterr().out
    assert "−3 · 10⁻⁷" in printed
    assert "± 1.4 · 10⁻⁷" in printed
