"""The verdicts follow the rules that docs/reading.md states."""

import re

import numpy as np
import pytest

from nc_callbacks.metrics import METRICS
from nc_callbacks.report import write_report
from nc_callbacks.report.payload import build_payload
from nc_callbacks.report.verdict import RULES, notes, num_classes, verdicts, without_error
from nc_callbacks.runs.folder import read_run
from tests.processes import ROOT
from tests.report.common import curves, make_run


def run_of(folder, **values):
    found = {f"nc/train/{name}": np.asarray(of, float) for name, of in values.items()}
    return read_run(make_run(folder, found=found))


def test_rules_are_those_of_the_docs():
    rows = re.findall(
        r"^\| (\S+) \| `(\w+)` \| (\S+) \| (\S+) \| (.+) \|$", (ROOT / "docs" / "reading.md").read_text(), re.M
    )
    stated = [(name, metric, float(ideal), float(within), text) for name, metric, ideal, within, text in rows]
    assert stated == [(r.condition, r.metric, r.ideal, r.tolerance, r.sentence) for r in RULES]
    assert all(METRICS[rule.metric].ideal == rule.ideal for rule in RULES)


@pytest.mark.parametrize(
    ("name", "values", "outcome", "progress"),
    [
        ("nc1", [1, 0.5, 0.05], "collapsed", 1),
        # Distances of 5 and 0.5: a factor of 10 of the 100 that lead to 0.05.
        ("nc1", [5, 0.5], "on the way", 0.5),
        ("nc1", [1, 0.51], "not", np.log(1 / 0.51) / np.log(20)),
        ("nc1", [0.5, 1], "not", 0),
        ("nc1", [0.06], "not", 0),
        ("nc1", [0.04], "collapsed", 1),
        ("nc1", [np.nan, 1, 0.2], "on the way", np.log(5) / np.log(20)),
        ("wm_cosine", [0.2, 0.94], "on the way", np.log(0.8 / 0.06) / np.log(16)),
        ("wm_cosine", [0.2, 0.96], "collapsed", 1),
        ("sqi_epsilon_rel_std", [-4, -1], "on the way", np.log(4) / np.log(40)),
    ],
)
def test_verdict(tmp_path, name, values, outcome, progress):
    (verdict,) = verdicts(run_of(tmp_path / "run", **{name: values}))
    assert (verdict.rule.metric, verdict.outcome) == (name, outcome)
    assert verdict.progress == pytest.approx(progress, rel=1e-5)


def test_what_was_not_measured_has_no_verdict(tmp_path):
    assert verdicts(run_of(tmp_path / "run", nc1=[1, np.nan], nc1_cdnv=[1, 0.5])) == []


def with_looks(folder, **arrays):
    folder = make_run(folder)
    found = {}
    for name, values in arrays.items():
        key = f"nc/{name.replace('__', '/')}"
        found |= {key: np.array([values], np.float32), f"{key}@epochs": np.array([1]), f"{key}@step": np.array(1)}
    np.savez(folder / "looks.npz", **found)
    return read_run(folder)


def test_notes_on_what_a_value_may_not_mean(tmp_path):
    counts = [30, 0, 40, 50, 60]
    run = with_looks(
        tmp_path / "a", train__counts=counts, val__counts=[3, 1, 4, 5, 6], train__explained_variance=[0.6, 0.4]
    )
    assert num_classes(run) == 4
    found = notes(run)
    assert found["NC2"] == "No simplex ETF of 4 classes fits into 2 features (p < k − 1): the distances cannot be 0."
    assert found["NC1"] == "val has 4 samples a class (median): its nc1 comes out too small."
    assert notes(with_looks(tmp_path / "b", train__counts=counts, train__explained_variance=[0.5, 0.3, 0.2])) == {}


def test_values_at_collapse_are_those_of_the_runs_classes(tmp_path):
    found = curves() | {"nc/train/spectrum_effective_rank": np.ones(30), "nc/train/nc2_uniformity": np.zeros(30)}
    run = read_run(make_run(tmp_path / "run", found=found))
    panels = [panel for section in build_payload([run], False)["sections"] for panel in section["panels"]]
    ideals = {metric["name"]: metric.get("ideal") for panel in panels for metric in panel["metrics"]}
    # write_looks has four classes, and spectra of four directions.
    assert ideals["spectrum_effective_rank"] == 3
    assert ideals["nc2_uniformity"] == pytest.approx(-0.5 * np.log(8 / 3))
    assert (ideals["nc1"], ideals["accuracy"], ideals["wm_cosine"]) == (0, 1, 1)
    # The terminal phase is a line in every chart, and has none of its own.
    assert "tpt" not in ideals
    assert without_error(run) == build_payload([run], False)["runs"][0]["withoutError"] == 25


def test_page_has_a_gauge_a_condition(tmp_path):
    text = write_report(make_run(tmp_path / "run")).read_text()
    gauges = text.split("class='gauges'")[1].split("</ul>")[0]
    assert re.findall(r"<a href='#curves-([^']+)'>\1</a> <b>([^<]+)</b>", gauges) == [
        ("NC1", "collapsed"), ("NC4", "collapsed"), ("W–M̄", "on the way"),
    ]  # fmt: skip
    assert "<code>nc1</code> 1 → <b>0.02</b> → 0" in gauges
