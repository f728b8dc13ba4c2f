"""The callbacks in a trainer of the package `pytorch_lightning`, the same code under its other name."""

import pytest
import torch
from torch import nn

from nc_callbacks import FeatureSpectrum, NeuralCollapse, QuasiInterpolation, WeightMeanAlignment
from tests import reference
from tests.callbacks.common import K, loader, samples

pl = pytest.importorskip("pytorch_lightning")


def classifier():
    class Classifier(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Sequential(nn.Linear(6, 8), nn.Tanh()), nn.Linear(8, K)

        def forward(self, x):
            return self.head(self.body(x))

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch, batch_idx):
            return None

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 0.01)

    torch.manual_seed(0)
    return Classifier()


def test_all_callbacks_in_its_trainer(tmp_path):
    from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint, TQDMProgressBar
    from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

    watching = [
        NeuralCollapse(splits=["train", "val"]),
        WeightMeanAlignment(),
        QuasiInterpolation(samples=[1]),
        FeatureSpectrum(),
        NeuralCollapse(prefix="online", mode="online"),
    ]
    # Validation runs once in two epochs: without our help these two would miss the values of the others.
    best = ModelCheckpoint(tmp_path, monitor="nc/val/nc1", save_top_k=-1)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=3,
        callbacks=[*watching, best, EarlyStopping("nc/train/nc1", patience=9), TQDMProgressBar()],
        logger=[CSVLogger(tmp_path), TensorBoardLogger(tmp_path)],
        check_val_every_n_epoch=2,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    model = classifier()
    trainer.fit(model, loader(0), loader(1))
    assert all(len(callback.history) == 3 for callback in watching)
    assert len(best.best_k_models) == 3
    x, y = samples(0)
    with torch.no_grad():
        moments = reference.moments(model.body(x).double().numpy(), y.numpy(), K)
    expected = reference.nc1(moments.within, moments.means)
    assert watching[0].latest["nc/train/nc1"] == pytest.approx(expected, rel=1e-5)
    trainer.validate(model, loader(1))
    assert "nc/val/nc1" in watching[0].latest


def test_names_of_both_packages_in_one_trainer():
    """A module of one package in a trainer of the other is refused by Lightning, before any callback runs."""
    import lightning as L

    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[NeuralCollapse()])
    with pytest.raises(TypeError, match=r"must be a `LightningModule`"):
        trainer.fit(classifier(), loader())


def test_a_module_without_forward_is_refused():
    model = classifier()
    type(model).forward = pl.LightningModule.forward
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, callbacks=[NeuralCollapse()], logger=False)
    with pytest.raises(ValueError, match="Classifier has no forward method"):
        trainer.fit(model, loader())
