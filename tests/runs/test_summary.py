"""What a run prints and leaves when it has ended."""

import json
import math

import pytest
from rich.console import Console

from nc_callbacks import files
from nc_callbacks.runs.folder import is_finished
from nc_callbacks.runs.summary import write_summary
from nc_callbacks.runs.terminal import digest, print_line, print_summary


def test_a_column_a_split_and_loader(tmp_path, capsys):
    metrics = {
        "nc/train/nc1": 0.125,
        "nc/val/nc1/dataloader_idx_0": 0.25,
        "nc/val/nc1/dataloader_idx_1": 0.5,
        "nc/train/body.4/nc1": math.inf,
        "train/loss": 2.0,
        "[lr]": 3.0,
    }
    print_summary(write_summary(tmp_path, metrics, 3, 1.5), tmp_path, verbose=True)
    lines = [line.replace("│", " ").replace("┃", " ").split() for line in capsys.readouterr().out.splitlines()]
    assert ["metric", "train", "val", "val,", "loader", "0", "val,", "loader", "1"] in lines
    assert ["nc/nc1", "0.125", "0.25", "0.5"] in lines
    assert ["nc/body.4/nc1", "not", "finite"] in lines
    assert ["loss", "2"] in lines
    assert ["[lr]", "3"] in lines


def test_file_is_whole_or_not_there(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        write_summary(tmp_path, {"nc/train/nc1": 1.0}, 1, 1.0)
    assert list(tmp_path.iterdir()) == []
    assert not is_finished(tmp_path)
    monkeypatch.undo()
    write_summary(tmp_path, {"nc/train/nc1": math.nan}, 1, 1.0)
    assert json.loads((tmp_path / "summary.json").read_text())["metrics"] == {"nc/train/nc1": None}
    assert is_finished(tmp_path)


def test_ten_lines_from_the_first_look_to_the_last(tmp_path, capsys):
    first = {"nc/train/nc1": 0.5, "nc/train/wm_cosine": 0.25, "train/loss": 2.0, "nc/train/sqi_epsilon_rel_std": -4.0}
    metrics = {
        "nc/train/nc1": 0.00125,
        "nc/val/nc1": 0.25,
        "nc/train/body.4/nc1": 7.0,
        "nc/train/wm_cosine": math.nan,
        "nc/train/mu1": 9.0,
        "train/loss": 1e-5,
        "nc/train/sqi_epsilon_rel_std": -0.5,
    }
    print_summary(write_summary(tmp_path, metrics, 3, 75.5), tmp_path, None, first)
    text = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0] == "After 3 epochs, 1 min 16 s"
    assert "Training loss 2 → 10⁻⁵" in lines
    assert "NC1 nc1 0.5 → 0.00125 0.25 ↓ 0" in lines
    assert "W–M̄ wm_cosine not finite ↑ 1" in lines
    assert "SQI sqi_epsilon_rel_std 4 → 0.5 → 0" in lines
    assert "mu1" not in text
    assert "7" not in text.split("All 7")[0].replace("75.5", "")
    assert "All 7 values: summary.json" in text


def test_where_no_condition_was_measured_all_is_printed(tmp_path, capsys):
    assert digest({"mine": 1.0}, {}) is None
    print_summary(write_summary(tmp_path, {"mine": 1.0}, 1, 1.0), tmp_path)
    assert "mine" in capsys.readouterr().out


def test_a_run_of_many_is_a_line(tmp_path, capsys):
    print_line(write_summary(tmp_path, {"nc/train/nc1": 0.5, "val/accuracy": math.nan}, 1, 12.0))
    assert capsys.readouterr().out == "Trained for 12 s: nc/train/nc1 0.5.\n"


@pytest.mark.parametrize("width", [50, 80, 200])
def test_no_number_is_cut_in_a_narrow_terminal(width):
    last = {f"nc/{split}/{name}": 0.00139 for split in ("train", "val") for name in ("nc4", "sqi_epsilon_rel_std")}
    console = Console(width=width, record=True)
    console.print(digest(last, dict.fromkeys(last, 0.162)))
    text = console.export_text()
    assert "…" not in text
    assert text.count("0.00139") == 4 or width == 50


def test_two_splits_fit_into_eighty_columns_a_line_a_metric():
    last = {f"nc/{split}/{name}": 0.0123 for split in ("train", "val") for name in ("nc4", "spectrum_effective_rank")}
    console = Console(width=80, record=True)
    console.print(digest(last, dict.fromkeys(last, 0.0446)))
    lines = [line for line in console.export_text().splitlines() if line.strip()]
    assert len(lines) == 4
    assert sum("0.0446 → 0.0123" in line for line in lines) == 2
