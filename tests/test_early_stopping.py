"""The example of docs/early_stopping.md runs, stops, and has lowered the learning rate."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "early_stopping.md"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_example_stops_and_lowers_the_rate(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [code] = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    names = {"__name__": "example"}
    exec(compile(code, str(PAGE), "exec"), names)
    trainer, history = names["trainer"], names["collapse"].history
    nc1 = [record["nc/train/nc1"] for record in history]
    assert 14 <= trainer.current_epoch < 100
    # Six looks in a row, each two epochs apart, without a fall of 0.01 below the best before them.
    best = min(nc1[:-6])
    assert all(value > best - 0.01 for value in nc1[-6:])
    assert trainer.optimizers[0].param_groups[0]["lr"] < 0.5
    printed = capsys.readouterr().out
    assert f"stopped after {trainer.current_epoch} epochs" in printed
    assert "nan" not in printed
