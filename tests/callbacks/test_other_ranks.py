"""What only the first rank does: files and figures are written once, however many processes there are."""

import pytest
from lightning import Trainer

from nc_callbacks import LookRecorder, NeuralCollapse, QuasiInterpolation
from nc_callbacks.callbacks import quasi_interpolation
from nc_callbacks.callbacks.base import CollapseCallback
from nc_callbacks.callbacks.samples import SAMPLES_FILE
from tests.callbacks.common import Classifier, loader, trainer
from tests.runs.test_report_page import At, broken


def fit(folder, *more, **settings):
    callbacks = NeuralCollapse(figures=True), QuasiInterpolation(samples=[3, 7]), LookRecorder(folder / "looks")
    trainer(*callbacks, *more, max_epochs=2, default_root_dir=folder, **settings).fit(Classifier(), loader())
    return callbacks


@pytest.mark.parametrize("first", [True, False])
def test_files_and_figures_are_the_first_ranks(tmp_path, monkeypatch, first):
    done = []
    monkeypatch.setattr(Trainer, "is_global_zero", first)
    monkeypatch.setattr(CollapseCallback, "draw", lambda callback, folder: done.append("drawn"))
    monkeypatch.setattr(NeuralCollapse, "draw", CollapseCallback.draw)
    monkeypatch.setattr(quasi_interpolation, "log_samples", lambda *given: done.append("logged"))
    collapse, errors, _ = fit(tmp_path)
    assert len(collapse.history) == len(errors.history) == 2
    assert sorted(done) == (["drawn", "logged"] if first else [])
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert written == ({"looks/looks.npz", SAMPLES_FILE} if first else set())


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("first", [True, False])
def test_figures_of_a_fit_that_is_broken_off_are_the_first_ranks(tmp_path, monkeypatch, first):
    drawn = []
    monkeypatch.setattr(Trainer, "is_global_zero", first)
    monkeypatch.setattr(NeuralCollapse, "draw", lambda callback, folder: drawn.append(folder))
    with pytest.raises(RuntimeError, match="no more data"):
        fit(tmp_path, At(1, broken))
    assert len(drawn) == first


@pytest.mark.parametrize("first", [True, False])
def test_looks_taken_over_from_a_checkpoint_are_the_first_ranks(tmp_path, monkeypatch, first):
    """Each rank has them in its callbacks' histories."""
    begun = trainer(NeuralCollapse(), max_epochs=1)
    begun.fit(Classifier(), loader())
    begun.save_checkpoint(tmp_path / "begun.ckpt")
    monkeypatch.setattr(Trainer, "is_global_zero", first)
    going_on = trainer(NeuralCollapse(), LookRecorder(tmp_path / "looks"), max_epochs=2)
    going_on.fit(Classifier(), loader(), ckpt_path=tmp_path / "begun.ckpt")
    assert (tmp_path / "looks" / "looks.npz").is_file() == first
