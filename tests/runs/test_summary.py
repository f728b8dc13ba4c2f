"""What a run prints and leaves when it has ended."""

import json
import math

import pytest

from nc_callbacks import files
from nc_callbacks.runs.folder import is_finished
from nc_callbacks.runs.summary import print_summary, write_summary


def test_a_column_a_split_and_loader(tmp_path, capsys):
    metrics = {
        "nc/train/nc1": 0.125,
        "nc/val/nc1/dataloader_idx_0": 0.25,
        "nc/val/nc1/dataloader_idx_1": 0.5,
        "nc/train/body.4/nc1": math.inf,
        "train/loss": 2.0,
        "[lr]": 3.0,
    }
    print_summary(write_summary(tmp_path, metrics, 3, 1.5), tmp_path)
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
