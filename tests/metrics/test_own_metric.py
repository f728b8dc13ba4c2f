"""A metric of one's own: a callback and a row, and it is found wherever metrics are."""

import re

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from nc_callbacks.callbacks.base import CollapseCallback
from nc_callbacks.callbacks.look_recorder import LookRecorder
from nc_callbacks.callbacks.measurement import Measurement
from nc_callbacks.dashboard import workspace
from nc_callbacks.engine.request import LayerNeeds, Needs
from nc_callbacks.metrics import Metric, register
from nc_callbacks.metrics.__main__ import tables
from nc_callbacks.metrics.registry import METRICS, SECTION_TEXTS
from nc_callbacks.runs.folder import read
from nc_callbacks.runs.loggers import per_class_tables
from nc_callbacks.runs.page import write_report
from nc_callbacks.runs.summary import summarise
from tests import reference
from tests.callbacks.common import Classifier, K, loader, samples, trainer


@pytest.fixture
def own():
    """The whole of it: 12 lines."""
    before = dict(METRICS), dict(SECTION_TEXTS)

    class Norms(CollapseCallback):
        @property
        def needs(self):
            return Needs(layers=dict.fromkeys(self.layers, LayerNeeds()))

        def measure(self, observation):
            norms = observation.moments.centred_means.norm(dim=1)
            return Measurement({"norm_largest": float(norms.max())}, {"norm_of_each": norms}, {})

    of_norms = {"section": "Norms", "unit": "features", "layers": True, "callback": "Norms", "definition": "‖μ_c‖"}
    register(Metric("norm_largest", panel="Largest norm", label="max", **of_norms), "How long class means are.")
    register(Metric("norm_of_each", panel="Norm of each class", label="norm", axis="class", **of_norms))

    yield Norms
    for held, saved in zip((METRICS, SECTION_TEXTS), before, strict=True):
        held.clear()
        held.update(saved)


def test_is_found_everywhere(own, tmp_path):
    callback = own(splits=["train", "val"], layers=["body.4"], figures=tmp_path / "figures")
    recorder = LookRecorder(tmp_path)
    settings = {"logger": CSVLogger(tmp_path, name="", version=""), "default_root_dir": tmp_path}
    fitting = trainer(callback, recorder, max_epochs=2, log_every_n_steps=1, **settings)
    fitting.fit(Classifier(), loader(), loader(1))
    summarise(fitting, tmp_path, 1.0)
    keys = {f"nc/{place}/norm_largest" for place in ("train", "val", "train/body.4", "val/body.4")}

    assert {key for key in fitting.callback_metrics if key.startswith("nc/")} == keys
    assert keys <= set(callback.history[-1])
    assert "nc/train/norm_of_each" in callback.history[0]
    figures = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert {"norm_largest", "norm_of_each_train", "norm_of_each_val_body.4"} <= figures

    run = read(tmp_path)[1][0]
    assert keys <= set(run.curves)
    last = callback.latest["nc/train/norm_of_each"]
    np.testing.assert_array_equal(run.looks["nc/train/norm_of_each"].values[-1], last)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    for text in ("How long class means are.", "Largest norm", "Norm of each class"):
        assert text in page
    columns, rows = per_class_tables([callback])["nc/val/body.4/per_class"]
    assert columns == ["epoch", "class", "norm_of_each"]
    assert len(rows) == 2 * 4
    assert re.search(r"^\| `norm_largest` \| ‖μ_c‖ \|", tables(), re.MULTILINE)


def test_samples_that_the_loss_ignores_count_in_no_metric(own):
    x, y = samples()
    ignored = torch.arange(len(y)) % 3 == 0
    data = TensorDataset(x, y.where(~ignored, -100))
    callback, model = own(), Classifier()
    trainer(callback).fit(model, DataLoader(data, batch_size=16))
    with torch.no_grad():
        h = model.double().eval().body(x[~ignored].double()).numpy()
    norms = np.linalg.norm(reference.centred(reference.moments(h, y[~ignored].numpy(), K).means), axis=1)
    np.testing.assert_allclose(callback.latest["nc/train/norm_of_each"], norms, rtol=1e-5)


def test_is_in_the_workspace(own):
    pytest.importorskip("wandb_workspaces", reason="needs wandb-workspaces (pip install wandb-workspaces)")
    sections = workspace("team", "project", splits=("train",), layers=("body.4",)).sections
    (section,) = [section for section in sections if section.name == "Norms"]
    names = [str(getattr(metric, "name", metric)) for panel in section.panels for metric in panel.y]
    assert names == ["nc/train/norm_largest", "nc/train/body.4/norm_largest"]


def test_without_a_row_it_is_shown_too(own, tmp_path):
    """Under the names that it has, beside what the module logged."""
    del METRICS["norm_largest"], METRICS["norm_of_each"]
    callback = own(figures=tmp_path / "figures")
    settings = {"logger": CSVLogger(tmp_path, name="", version=""), "default_root_dir": tmp_path}
    trainer(callback, max_epochs=1, log_every_n_steps=1, **settings).fit(Classifier(), loader())
    assert (tmp_path / "figures" / "norm_largest.png").is_file()
    assert '"title":"norm_largest"' in write_report(tmp_path).read_text(encoding="utf-8")
