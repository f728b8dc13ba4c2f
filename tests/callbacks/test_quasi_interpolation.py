"""QuasiInterpolation: the whole table, which outputs are measured, and the table of samples."""

import csv
import logging

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from nc_callbacks import NeuralCollapse, QuasiInterpolation
from tests import reference
from tests.callbacks.common import Classifier, K, loader, samples, trainer


class WithLoss(Classifier):
    def __init__(self):
        super().__init__()
        self.loss = nn.CrossEntropyLoss()


class Squared(Classifier):
    def training_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self(batch[0]), nn.functional.one_hot(batch[1], K).float())


def outputs_of(model, x):
    with torch.no_grad():
        return model.double().eval()(x.double()).numpy()


@pytest.mark.parametrize("outputs", ["raw", "softmax"])
def test_numbers(outputs):
    callback, model = QuasiInterpolation(outputs=outputs, splits=["train", "val"]), Classifier()
    trainer(callback, max_epochs=2).fit(model, loader(0), loader(1))
    for split, (x, y) in (("train", samples(0)), ("val", samples(1))):
        expected = reference.quasi_interpolation(outputs_of(model, x), y.numpy(), softmax=outputs == "softmax")
        assert len(expected) == 9
        for name, value in expected.items():
            assert callback.latest[f"nc/{split}/{name}"] == pytest.approx(value, rel=1e-4, abs=1e-6), (split, name)


@pytest.mark.parametrize(
    ("outputs", "model", "kind"),
    [
        (None, Classifier, "softmax"),
        (None, Squared, "raw"),
        (None, WithLoss, "softmax"),
        ("raw", WithLoss, "raw"),
        ("softmax", Classifier, "softmax"),
    ],
)
def test_which_outputs_are_measured(outputs, model, kind, caplog):
    callback = QuasiInterpolation(outputs=outputs)
    with caplog.at_level(logging.INFO):
        trainer(callback).fit(model(), loader())
    assert callback.kind == kind
    assert ("only the spread can be read" in caplog.text) == (kind == "softmax")
    assert ("measures raw outputs" in caplog.text) == (kind == "raw")
    if kind == "softmax":
        # The outputs add up to one, so the average condition holds whatever the network does.
        assert callback.latest["nc/train/sqi_ratio"] == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("outputs", ["raw", "softmax"])
def test_table_of_samples(outputs, tmp_path):
    callback, model = QuasiInterpolation(outputs=outputs, samples=[70, 3]), Classifier()
    logger = TensorBoardLogger(tmp_path, name="", version="")
    tmp_path = tmp_path / "not there yet"
    trainer(callback, logger=logger, default_root_dir=tmp_path, max_epochs=2).fit(model, loader())
    x, y = samples()
    f = torch.from_numpy(outputs_of(model, x[[70, 3]]))
    f = (f.softmax(1) if outputs == "softmax" else f).numpy()
    labels = y[[70, 3]].tolist()
    table = callback.latest["nc/train/sqi_samples"]
    assert table[:, :2].tolist() == [[70, labels[0]], [3, labels[1]]]
    for row, label, values in zip(table.numpy(), labels, f, strict=True):
        assert row[2] == pytest.approx(1 - values[label], abs=1e-5)
        others = [c for c in range(K) if c != label]
        np.testing.assert_allclose(row[3:][others], values[others], atol=1e-5)
        assert np.isnan(row[3 + label])

    with open(tmp_path / "quasi_interpolation_samples.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["sample"], row["label"]) for row in rows] == [
        ("1", "70", str(labels[0])),
        ("1", "3", str(labels[1])),
    ]
    assert float(rows[0]["epsilon_e3"]) == pytest.approx(1000 * (1 - f[0, labels[0]]), rel=1e-2, abs=0.05)
    assert rows[0][f"epsilon_off_e3_class_{labels[0]}"] == ""

    events = EventAccumulator(str(tmp_path.parent)).Reload()
    assert any("sqi_samples" in tag for tag in events.Tags()["tensors"])


def test_tables_hold_numbers(tmp_path):
    """W&B makes a column of texts of one text."""
    tables = {}

    class Tables(CSVLogger):
        def log_table(self, key, columns, data):
            tables[key] = columns, data

    given = {"logger": Tables(tmp_path), "default_root_dir": tmp_path}
    trainer(QuasiInterpolation(outputs="raw", samples=[70, 3]), **given).fit(Classifier(), loader())
    columns, rows = tables["nc/train/sqi_samples"]
    assert columns[:3] == ["epoch", "sample", "label"]
    assert [row[1] for row in rows] == [70, 3]
    cells = [cell for row in rows for cell in row]
    assert len(cells) == 2 * (4 + K)
    assert sum(cell is None for cell in cells) == 2
    assert all(cell is None or type(cell) in (int, float) for cell in cells)


def test_sample_that_is_not_there():
    with pytest.raises(ValueError, match=r"indices of the training set, which has 80 samples.*got \[80\]"):
        trainer(QuasiInterpolation(samples=[80])).fit(Classifier(), loader())


def test_bad_outputs():
    with pytest.raises(ValueError, match='outputs must be None, "raw" or "softmax"'):
        QuasiInterpolation(outputs="logits")


def test_outputs_that_are_not_n_by_k():
    class Tokens(Classifier):
        def forward(self, x):
            return self.head(self.body(x)[:, None].expand(-1, 3, -1))

    with pytest.raises(ValueError, match=r"for targets of shape \(16,\)"):
        trainer(QuasiInterpolation(head="head")).fit(Tokens(), loader())


@pytest.mark.parametrize(
    ("scaled", "how"), [(lambda f: f * 2.5, "times 2.5"), (lambda f: 9 * (f / 9).tanh(), "through")]
)
def test_outputs_that_the_model_scales_are_refused(scaled, how):
    class Temperature(Classifier):
        def forward(self, x):
            return scaled(super().forward(x))

    match = f"For quasi-interpolation the outputs of 'head' would be measured, but Temperature returns them {how}"
    with pytest.raises(ValueError, match=match):
        trainer(QuasiInterpolation()).fit(Temperature(), loader())
    collapse = NeuralCollapse()
    trainer(collapse).fit(Temperature(), loader())
    assert collapse.head == "head"


def test_a_classifier_that_scales_its_outputs_itself_is_measured():
    class Scaled(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return 2.5 * self.inner(x)

    model = Classifier()
    model.head = Scaled(model.head)
    callback = QuasiInterpolation(outputs="raw", head="head")
    trainer(callback).fit(model, loader())
    x, y = samples()
    with torch.no_grad():
        outputs = model.eval()(x)
    expected = (1 - outputs[torch.arange(len(y)), y]).mean().item()
    assert callback.latest["nc/train/sqi_epsilon"] == pytest.approx(expected, rel=1e-5)
