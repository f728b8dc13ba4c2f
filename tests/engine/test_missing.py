"""Loggers, figures and files that fail, and what is not there: a warning or a sentence."""

import re
import warnings
from dataclasses import replace

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from nc_callbacks import FeatureSpectrum, NeuralCollapse, QuasiInterpolation, WeightMeanAlignment
from nc_callbacks.engine.session import session_of
from tests.callbacks.common import Classifier, loader, samples, trainer, whole_set

X, Y = samples()


def all_four(**settings):
    return [kind(**settings) for kind in (NeuralCollapse, WeightMeanAlignment, QuasiInterpolation, FeatureSpectrum)]


def fit_with_warnings(callbacks, model=None, data=None, pattern="", **settings):
    """Fits, and returns the trainer and the warnings that match."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit = trainer(*callbacks, **{"max_epochs": 3} | settings)
        fit.fit(model or Classifier(), data or loader())
    assert fit.current_epoch == fit.max_epochs
    return fit, [str(w.message) for w in caught if re.search(pattern, str(w.message))]


def assert_whole(callback, model):
    for name, value in whole_set(model, (X, Y), (X, Y)).items():
        assert callback.latest[f"nc/train/{name}"] == pytest.approx(value, rel=1e-5, abs=1e-7), name


class TestLoggersAndFigures:
    def test_a_logger_that_raises(self, tmp_path):
        class Raising(CSVLogger):
            def log_table(self, *args):
                raise ConnectionError("offline")

        callback = QuasiInterpolation(samples=[0])
        logger = Raising(tmp_path, name="", version="")
        _, told = fit_with_warnings([callback], pattern="offline", logger=logger, default_root_dir=tmp_path)
        assert len(told) == 1
        assert "The table of samples could not be logged by Raising: ConnectionError('offline')" in told[0]
        assert (tmp_path / "quasi_interpolation_samples.csv").is_file()

    def test_a_tensorboard_that_raises(self, tmp_path):
        def refuse(*_):
            raise PermissionError("read-only")

        logger = TensorBoardLogger(tmp_path, name="", version="")
        logger.experiment.add_text = refuse
        callback = QuasiInterpolation(samples=[0])
        _, told = fit_with_warnings([callback], pattern="read-only", logger=logger, default_root_dir=tmp_path)
        assert len(told) == 1
        assert "could not be logged by TensorBoardLogger: PermissionError('read-only')" in told[0]

    @pytest.mark.parametrize("logger", [None, False, []])
    def test_no_logger(self, logger, tmp_path):
        callbacks = [NeuralCollapse(), QuasiInterpolation(samples=[0])]
        _, told = fit_with_warnings(callbacks, pattern="table|figures", logger=logger, default_root_dir=tmp_path)
        assert told == []
        assert len(callbacks[0].history) == 3

    def test_folders_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_text("in the way")
        callbacks = [NeuralCollapse(figures=tmp_path / "file"), QuasiInterpolation(samples=[0])]
        _, told = fit_with_warnings(callbacks, pattern="could not", default_root_dir=tmp_path / "file")
        assert sum("NeuralCollapse could not draw its figures" in message for message in told) == 1
        assert "The table of samples could not be written" in told[0]

    def test_is_said_once(self, tmp_path):
        (tmp_path / "file").write_text("in the way")
        data = DataLoader(TensorDataset(X, Y), 16, sampler=list(range(80)))
        callbacks = [NeuralCollapse(), QuasiInterpolation(samples=[0])]
        settings = {"pattern": "could not be written", "default_root_dir": tmp_path / "file"}
        _, told = fit_with_warnings(callbacks, data=data, **settings)
        assert len(told) == 1


class Streamed(IterableDataset):
    """Gives these samples, and says no length."""

    def __init__(self, *items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


class TestWhatIsNotThere:
    def test_batches_without_targets(self):
        callback = NeuralCollapse(batch_fn=lambda batch: (batch[0], None))
        with pytest.raises(ValueError, match="batch_fn gives no targets for the first 10 batches of the train loader"):
            trainer(callback).fit(Classifier(), loader())

    def test_loaders_without_a_batch(self):
        for callback, message in (
            (NeuralCollapse(splits=["train", "val"]), "The val loader is empty: it gave no batch"),
            (NeuralCollapse(ood_loader=DataLoader(Streamed(), 4)), "The out-of-distribution loader is empty: it gave"),
        ):
            with pytest.raises(ValueError, match=message):
                trainer(callback, num_sanity_val_steps=0).fit(Classifier(), loader(), DataLoader(Streamed(), 4))

    def test_matplotlib(self, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ModuleNotFoundError, match="figures need matplotlib: pip install matplotlib, or pass"):
            NeuralCollapse(figures=True)
        NeuralCollapse(figures=False)

    @pytest.mark.filterwarnings("ignore:NeuralCollapse. the look after")
    def test_which_samples_are_repeats(self):
        """On two ranks, from a sampler that says nothing of it."""
        model, callback = Classifier(), NeuralCollapse(mode="online")
        told = []

        class TwoRanks(Callback):
            def on_train_start(self, trainer, pl_module):
                (stream,) = session_of(trainer).streams.values()
                stream.look.ranks = replace(stream.look.ranks, size=2)
                stream.warn = lambda about, message: told.append(message)

            def on_train_batch_end(self, trainer, pl_module, *_):
                (stream,) = session_of(trainer).streams.values()
                if trainer.is_last_batch:
                    stream.look.ranks = replace(stream.look.ranks, size=1)

        data = DataLoader(TensorDataset(X, Y), 16, sampler=list(range(80)))
        trainer(callback, TwoRanks()).fit(model, data)
        assert "samples that the sampler repeats to even the ranks out are counted again" in told[0]
