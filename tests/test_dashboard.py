"""The W&B workspace has the sections in order and the keys that the callbacks log."""

import json
import os
import sys

import pytest

from nc_callbacks import dashboard
from nc_callbacks.metrics.depth import OF_DEPTH
from tests.metrics.test_registry import logged
from tests.processes import python

pytest.importorskip("wandb_workspaces", reason="needs wandb-workspaces (pip install wandb-workspaces)")

# The line over depth needs three layers.
ON_DEMAND = ["--on-demand", "--layers", "body.0", "body.4"]


@pytest.fixture
def printed(capsys):
    def run(*arguments):
        assert dashboard.main(["--entity", "team", "--project", "collapse", "--dry-run", *arguments]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def sections(spec):
    return spec["spec"]["section"]["panelBankConfig"]["sections"]


def keys(spec):
    found = [section for section in sections(spec) if section["name"] not in ("Depth", "Training", "Classes", "Sweep")]
    return [key for section in found for panel in section["panels"] for key in panel["config"]["metrics"]]


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ([], {"splits": ["train", "val"]}),
        (["--splits", "train"], {}),
        (["--layers", "body.4"], {"splits": ["train", "val"], "layers": ["body.4"]}),
        (ON_DEMAND, {"splits": ["train", "val"], "layers": ["body.0", "body.4"], "on_demand": True}),
    ],
    ids=["default", "train", "layer", "on demand"],
)
def test_keys_are_those_that_the_callbacks_log(printed, arguments, settings):
    found = keys(printed(*arguments))
    assert len(found) == len(set(found))
    assert set(found) == logged(**settings)


def test_sections_in_order(printed):
    spec = printed("--name", "Mine")
    names = [section["name"] for section in sections(spec)]
    assert names == ["NC1", "NC2", "NC3", "NC4", "OOD", "W–M̄", "SQI", "Spectrum", "Training", "Classes", "Sweep"]
    assert (spec["entity"], spec["project"], spec["displayName"]) == ("team", "collapse", "Mine")
    assert all(panel["config"]["xAxis"] == "epoch" for s in sections(spec)[:-2] for panel in s["panels"])
    first = sections(spec)[0]["panels"][0]["config"]
    assert first["metrics"][:2] == ["nc/train/nc1", "nc/val/nc1"]
    assert first["yLogScale"]
    training, classes = sections(spec)[-3:-1]
    assert [panel["config"]["metrics"] for panel in training["panels"]] == [
        ["train/loss", "val/loss"],
        ["train/accuracy", "val/accuracy"],
    ]
    shown = [panel["config"]["mediaKeys"] for panel in classes["panels"]]
    assert shown == [["figures/summary"], ["nc/train/per_class"], ["nc/val/per_class"]]


def test_depth_has_each_metric_layer_by_layer(printed):
    spec = printed(*ON_DEMAND, "--splits", "train")
    (depth,) = [section for section in sections(spec) if section["name"] == "Depth"]
    *bars, pictures = depth["panels"]
    found = [panel["config"]["metrics"] for panel in bars]
    assert [keys[-1].rsplit("/", 1)[1] for keys in found] == list(OF_DEPTH)
    assert found[0] == ["nc/train/body.0/nc1", "nc/train/body.4/nc1", "nc/train/nc1"]
    assert {key for keys in found for key in keys} <= logged(layers=["body.0", "body.4"], on_demand=True)
    assert pictures["config"]["mediaKeys"] == ["figures/depth_train"]
    assert "Depth" not in [section["name"] for section in sections(printed("--layers", "body.4"))]


def test_a_module_that_logs_nothing_has_no_section_for_it(printed):
    assert "Training" not in [section["name"] for section in sections(printed("--training"))]


def test_sweep_compares_configuration_and_logged_keys(printed):
    coordinates, *bars, comparer = sections(printed("--parameters", "optimizer.lr", "seed"))[-1]["panels"]
    accessors = [column["accessor"] for column in coordinates["config"]["columns"]]
    assert accessors[:2] == ["config:optimizer.value.lr", "config:seed.value"]
    summaries = {accessor.removeprefix("summary:") for accessor in accessors[2:]}
    assert summaries <= logged(splits=["train", "val"])
    assert {metric for bar in bars for metric in bar["config"]["metrics"]} == summaries
    assert comparer["viewType"] == "Run Comparer"


def test_dry_run_needs_no_account(tmp_path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    environment |= {"HOME": str(tmp_path), "WANDB_BASE_URL": "http://localhost:9", "WANDB_SILENT": "true"}
    command = ("-m", "nc_callbacks.dashboard", "--entity", "a", "--project", "b", "--dry-run")
    run = python(*command, environment=environment)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["project"] == "b"


def test_without_the_package_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    assert dashboard.main(["--entity", "a", "--project", "b", "--dry-run"]) == 1
    assert "pip install wandb-workspaces" in capsys.readouterr().err
