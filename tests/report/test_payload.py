"""What the scripts read: the arrays come back as they were, within the budgets."""

import base64
import json

import numpy as np
import pytest

from nc_callbacks.report import payload as module
from nc_callbacks.report.payload import build_payload
from nc_callbacks.runs.folder import read
from tests.report.common import make_run, make_sweep


def decoded(text, kind):
    return np.frombuffer(base64.b64decode(text), kind)


def of(items, name, split="train"):
    (item,) = [item for item in items if (item["name"], item["split"], item["own"]) == (name, split, False)]
    return item


@pytest.fixture
def run(tmp_path):
    return read(make_run(tmp_path / "run"))[1][0]


def test_curves(run):
    (content,) = build_payload([run], False)["runs"]
    for key, (epochs, values) in run.curves.items():
        split, name = key.split("/")[-2:]
        own = not key.startswith("nc/")
        (curve,) = [c for c in content["curves"] if (c["name"], c["split"], c["own"]) == (name, split, own)]
        np.testing.assert_array_equal(decoded(content["epochs"][curve["epochs"]], "<i4"), epochs)
        np.testing.assert_array_equal(decoded(curve["values"], "<f4"), values)
    assert len(content["epochs"]) == 1


def test_looks(run):
    (content,) = build_payload([run], False)["runs"]
    vector = of(content["looks"], "mu1_per_class")
    values = decoded(vector["values"], "<f4").reshape(-1, *vector["shape"])
    np.testing.assert_array_equal(values, run.looks["nc/train/mu1_per_class"].values)
    matrix = of(content["looks"], "class_mean_cosines")
    values = matrix["scale"] * decoded(matrix["values"], "<i2").reshape(-1, *matrix["shape"])
    np.testing.assert_allclose(values, run.looks["nc/train/class_mean_cosines"].values, atol=0.51 / 32767)


def test_missing_entries_of_a_matrix(run):
    run.looks["nc/train/class_mean_cosines"].values[:, 0] = np.nan
    (content,) = build_payload([run], False)["runs"]
    matrix = of(content["looks"], "class_mean_cosines")
    values = decoded(matrix["values"], "<i2").reshape(-1, *matrix["shape"])
    assert (values[:, 0] == -32768).all()
    assert (values[:, 1:] > -32768).all()


def test_panels_show_what_was_logged(run):
    sections = {section["title"]: section["panels"] for section in build_payload([run], False)["sections"]}
    assert [metric["name"] for metric in sections["NC1"][0]["metrics"]] == ["nc1", "nc1_cdnv"]
    assert sections["SQI"] == []
    assert [panel["title"] for panel in sections["Training"]] == ["loss"]


def test_budgets_thin_curves_and_matrices(tmp_path, monkeypatch):
    runs = read(make_sweep(tmp_path))[1]
    monkeypatch.setattr(module, "MAX_CURVE_VALUES", 4 * 15 * 10)
    monkeypatch.setattr(module, "MAX_MATRIX_VALUES", 4 * 2 * 2 * 16)
    content = build_payload(runs, True)["runs"][0]
    curve = of(content["curves"], "nc1")
    assert decoded(content["epochs"][curve["epochs"]], "<i4").tolist() == [1, 4, 7, 11, 14, 17, 20, 24, 27, 30]
    np.testing.assert_allclose(decoded(curve["values"], "<f4")[[0, -1]], [1, 0.02])
    assert of(content["looks"], "class_mean_cosines")["epochs"] == [1, 30]
    assert of(content["looks"], "mu1_per_class")["epochs"] == [1, 2, 30]


def test_values_that_json_has_no_word_for(run):
    run.metrics["nc/train/nc1"] = float("inf")
    content = json.loads(json.dumps(build_payload([run], False), allow_nan=False))
    assert content["runs"][0]["final"]["nc/train/nc1"] is None


def test_panels_name_the_standard_error_of_what_has_one(run):
    for name in ("nc1_corrected", "nc1_error"):
        run.curves[f"nc/train/{name}"] = run.curves["nc/train/nc1"]
    content = build_payload([run], False)
    metrics = [m for section in content["sections"] for panel in section["panels"] for m in panel["metrics"]]
    named = {m["name"]: m.get("error") for m in metrics}
    assert (named["nc1_corrected"], named["nc1"], content["band"]) == ("nc1_error", "", 1.96)
