"""The page as an artefact of loggers that keep files, and pictures while training goes on."""

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CometLogger, MLFlowLogger, TensorBoardLogger, WandbLogger

from nc_callbacks import NeuralCollapse, ReportPage
from nc_callbacks.runs.artefacts import leave_page, show_pictures
from tests.callbacks.common import Classifier, loader


class Client:
    """Keeps what it is asked for."""

    id = "abc"

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *given, **named: self.calls.append((name, *given, *named.values()))


def logger_of(kind, client):
    """A logger of Lightning's class, without its package."""
    made = object.__new__(type(kind.__name__, (kind,), {"__module__": kind.__module__, "experiment": client}))
    made._run_id, made._initialized = "run", True
    return made


def fit(folder, logger, **settings):
    given = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    page = ReportPage(folder, **settings)
    trainer = Trainer(
        **given, logger=logger, max_epochs=3, enable_checkpointing=False, callbacks=[NeuralCollapse(), page]
    )
    trainer.fit(Classifier(), loader())
    return page


def test_mlflow_and_comet_get_page_and_figures(tmp_path):
    page, picture = tmp_path / "report.html", tmp_path / "nc" / "a.svg"
    mlflow, comet = Client(), Client()
    loggers = [logger_of(MLFlowLogger, mlflow), logger_of(CometLogger, comet)]
    leave_page(loggers, page, {"nc/a": picture})
    assert mlflow.calls == [
        ("log_artifact", "run", str(page)),
        ("log_artifact", "run", str(picture), "figures/nc"),
    ]
    assert comet.calls == [
        ("log_asset", str(page), "report.html"),
        ("log_asset", str(picture), "figures/nc/a.svg"),
    ]
    show_pictures(loggers, {"a": picture}, 3, 7)
    assert mlflow.calls[2:] == []
    assert comet.calls[2:] == [("log_image", str(picture), "figures/a", 7)]


def test_a_logger_that_fails_gives_a_warning_and_keeps_no_other_from_it(tmp_path):
    class Full(Client):
        def log_artifact(self, *given):
            raise OSError("disk full")

    comet = Client()
    with pytest.warns(UserWarning, match="could not take the page: OSError"):
        leave_page([logger_of(MLFlowLogger, Full()), logger_of(CometLogger, comet)], tmp_path / "report.html", {})
    assert len(comet.calls) == 1
    with pytest.warns(UserWarning, match="could not take the page: ValueError"):
        leave_page([logger_of(WandbLogger, Client())], tmp_path / "absent.html", {})


def test_tensorboard_shows_the_summary_while_training_goes_on(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="board", version="")
    fit(tmp_path / "run", logger, draw_epochs=[0])
    logger.finalize("success")
    images = EventAccumulator(str(tmp_path / "board"), size_guidance={"images": 0}).Reload().Images("figures/summary")
    assert [image.step for image in images] == [len(loader())]


def test_what_draw_epochs_can_be(tmp_path):
    with pytest.raises(ValueError, match='list of epochs or "log"'):
        ReportPage(tmp_path, draw_epochs="often")


def test_mlflow_file_store(tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="needs mlflow-skinny (pip install mlflow-skinny)")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = MLFlowLogger("collapse", tracking_uri=(tmp_path / "mlruns").as_uri())
    page = fit(tmp_path / "run", logger)
    client, run = logger.experiment, logger.run_id
    assert {file.path for file in client.list_artifacts(run)} == {"report.html", "figures"}
    assert [file.path for file in client.list_artifacts(run, "figures")] == ["figures/summary.png"]
    (kept,) = (tmp_path / "mlruns").rglob("report.html")
    assert kept.read_bytes() == page.page.read_bytes()
    values = [entry.value for entry in client.get_metric_history(run, "nc/train/nc1")]
    assert values == pytest.approx([page.curves.rows[epoch]["nc/train/nc1"] for epoch in range(3)])
