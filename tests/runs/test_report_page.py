"""ReportPage with trainers of one's own: fits that end, are stopped, fail, go on."""

import csv
import json
import os
import signal

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from nc_callbacks import LookRecorder, NeuralCollapse, QuasiInterpolation, ReportPage, WeightMeanAlignment
from nc_callbacks.report import findings
from nc_callbacks.runs.folder import is_finished, read
from tests.callbacks.common import Classifier, loader, trainer


class At(Callback):
    """Does something in the midst of an epoch."""

    def __init__(self, epoch, what):
        self.epoch, self.what = epoch, what

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (self.epoch, 1):
            self.what()


class Logs(Classifier):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss


def interrupted():
    raise KeyboardInterrupt


def broken():
    raise RuntimeError("no more data")


def table(folder):
    with open(folder / "metrics.csv") as file:
        return list(csv.DictReader(file))


def fit(folder, *more, model=Logs, figures="none", epochs=3, **settings):
    collapse = NeuralCollapse(splits=["train", "val"])
    page = ReportPage(folder, figures=figures)
    fitting = trainer(collapse, WeightMeanAlignment(), page, *more, max_epochs=epochs, **settings)
    fitting.fit(model(), loader(), loader(1))
    return fitting, collapse, page


def test_a_fit_that_ends(tmp_path):
    fitting, collapse, page = fit(tmp_path / "run", figures="summary")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "figures", "looks.npz", "metrics.csv", "report.html", "summary.json",
    ]  # fmt: skip
    assert [path.name for path in (tmp_path / "run" / "figures").iterdir()] == ["summary.png"]
    assert page.page == tmp_path / "run" / "report.html"
    rows = table(tmp_path / "run")
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2]
    for row, record in zip(rows, collapse.history, strict=True):
        assert float(row["nc/val/nc1"]) == pytest.approx(record["nc/val/nc1"], rel=1e-6)
    assert {"train/loss", "val_loss", "nc/train/wm_cosine"} <= set(rows[0])
    (run,) = read(tmp_path / "run")[1]
    assert (run.status, run.epochs) == ("finished", 3)
    assert run.final["nc/train/nc1"] == pytest.approx(collapse.latest["nc/train/nc1"], rel=1e-6)
    # The trainer is left with the loggers it had.
    assert fitting.loggers == []
    assert "Status" not in page.page.read_text().split("</header>")[0]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("what", "raised", "status", "error"),
    [
        (interrupted, SystemExit, "stopped", "KeyboardInterrupt"),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), SystemExit, "stopped", "SIGTERMException"),
        (broken, RuntimeError, "failed", "RuntimeError: no more data"),
    ],
)
def test_a_fit_that_is_broken_off(tmp_path, what, raised, status, error, caplog):
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(raised), caplog.at_level("INFO"):
            fit(tmp_path, At(2, what), figures="summary", epochs=9)
    finally:
        signal.signal(signal.SIGINT, before)
    assert f"Training {status} in epoch 3. Page: {tmp_path}/report.html" in caplog.text
    assert (tmp_path / "figures" / "summary.png").stat().st_size > 10_000
    (run,) = read(tmp_path)[1]
    assert (run.status, run.error, run.epochs) == (status, error, 2)
    assert not is_finished(tmp_path)
    # What was logged in the two epochs that were whole, and the last of it.
    assert [int(row["epoch"]) for row in table(tmp_path)] == [0, 1]
    assert run.final["nc/train/nc1"] == pytest.approx(float(table(tmp_path)[1]["nc/train/nc1"]))
    assert run.looks["nc/train/class_mean_norms"].epochs.tolist() == [1, 2]
    assert status in (tmp_path / "report.html").read_text().split("</header>")[0]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_figures_of_a_callback_of_a_fit_that_is_broken_off(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(NeuralCollapse, "draw", lambda callback, folder: drawn.append(len(callback.history)))
    with pytest.raises(RuntimeError, match="no more data"):
        trainer(NeuralCollapse(figures=tmp_path), At(1, broken), max_epochs=3).fit(Classifier(), loader())
    assert drawn == [1]


def test_a_fit_that_fails_before_its_first_look_keeps_its_error(tmp_path):
    with pytest.raises(RuntimeError, match="no more data"):
        fit(tmp_path, At(0, broken), figures="summary")
    (run,) = read(tmp_path)[1]
    assert (run.status, run.final, run.epochs) == ("failed", {}, 0)


def test_looks_every_second_epoch_are_not_repeated(tmp_path):
    page = ReportPage(tmp_path, figures="none")
    trainer(NeuralCollapse(every_n_epochs=2), page, max_epochs=4).fit(Logs(), loader())
    rows = table(tmp_path)
    assert [bool(row["nc/train/nc1"]) for row in rows] == [False, True, False, True]
    assert all(row["train/loss"] for row in rows)


def test_curves_go_on_where_a_fit_goes_on(tmp_path):
    first, again = tmp_path / "first", tmp_path / "again"
    saves = {"enable_checkpointing": True}
    fit(first, ModelCheckpoint(tmp_path, filename="a"), epochs=2, **saves)
    for folder in (first, again):
        collapse, page = NeuralCollapse(splits=["train", "val"]), ReportPage(folder, figures="none")
        fitting = trainer(collapse, WeightMeanAlignment(), page, max_epochs=4)
        fitting.fit(Logs(), loader(), loader(1), ckpt_path=tmp_path / "a.ckpt")
        rows = table(folder)
        assert [int(row["epoch"]) for row in rows] == [0, 1, 2, 3]
        assert [float(row["nc/train/nc1"]) for row in rows] == pytest.approx(
            [record["nc/train/nc1"] for record in collapse.history], rel=1e-6
        )
        # What the module logged itself is in no history.
        assert [bool(row["train/loss"]) for row in rows] == [folder == first] * 2 + [True] * 2


def test_a_csv_logger_in_the_folder_writes_the_curves(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="", flush_logs_every_n_steps=1000)
    fitting, collapse, _ = fit(tmp_path, logger=logger)
    assert fitting.loggers == [logger]
    (run,) = read(tmp_path)[1]
    assert run.curves["nc/train/nc1"][1].tolist() == pytest.approx(
        [record["nc/train/nc1"] for record in collapse.history], rel=1e-6
    )
    assert "nc/train/nc1" in (tmp_path / "report.html").read_text() or run.curves


def test_what_cannot_be_written_ends_no_training(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.warns(UserWarning, match="The looks could not be written to"),
        pytest.warns(UserWarning, match="ReportPage could not make its folder") as warned,
    ):
        fitting, _, page = fit(tmp_path / "file", figures="summary")
    assert fitting.current_epoch == 3
    assert page.page is None
    assert sum("ReportPage" in str(warning.message) for warning in warned) == 1


def test_all_figures_in_the_formats_asked_for(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **settings: path.touch())
    collapse, errors = NeuralCollapse(), QuasiInterpolation(outputs="softmax", prefix="other")
    page = ReportPage(tmp_path, figures="all", formats=["svg", "pdf"])
    trainer(collapse, errors, page).fit(Classifier(), loader())
    names = {path.relative_to(tmp_path / "figures").as_posix() for path in (tmp_path / "figures").rglob("*.*")}
    assert {"summary.svg", "summary.pdf", "summary_other.pdf", "nc1.svg", "nc1.pdf", "collapse.pdf"} <= names
    assert {"other/quasi_interpolation_train.svg", "other/quasi_interpolation_train.pdf"} <= names
    assert not any(name.endswith("png") for name in names)


def test_another_rank_than_the_first_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "is_global_zero", False)
    shown = []
    monkeypatch.setattr(ReportPage, "_show", lambda page, trainer: shown.append(trainer.current_epoch))
    page = ReportPage(tmp_path / "run", figures="summary", draw_epochs=[0])
    trainer(NeuralCollapse(), page, max_epochs=2).fit(Classifier(), loader())
    assert page.page is None
    assert shown == []
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", [{"figures": "some"}, {"formats": "png"}, {"formats": []}, {"formats": ["gif"]}])
def test_bad_arguments(tmp_path, given):
    with pytest.raises(ValueError, match="must be"):
        ReportPage(tmp_path, **given)


def test_a_fit_with_a_recorder_alone_has_ended(tmp_path):
    trainer(NeuralCollapse(), LookRecorder(tmp_path / "whole"), max_epochs=2).fit(Classifier(), loader())
    broken_off = trainer(NeuralCollapse(), LookRecorder(tmp_path / "half"), At(1, broken), max_epochs=2)
    with pytest.raises(RuntimeError, match="no more data"):
        broken_off.fit(Classifier(), loader())
    for name in ("whole", "half"):
        (tmp_path / name / "metrics.csv").write_text("epoch,nc/train/nc1\n0,0.5\n")
    half, whole = read(tmp_path)[1]
    assert (whole.status, half.status) == ("finished", "unfinished")
    assert findings.of_sweep([half, whole])[0].text == "of 2 runs finished; 1 left no summary."


def test_summary_says_how_it_ended(tmp_path):
    fit(tmp_path)
    assert "status" not in json.loads((tmp_path / "summary.json").read_text())
    (tmp_path / "summary.json").write_text('{"status": "well"}')
    with pytest.raises(ValueError, match="expected one of finished, stopped, failed as its status, got 'well'"):
        read(tmp_path)
