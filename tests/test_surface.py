"""Log keys, columns and public names against the list of those that users rely on."""

import csv
import importlib
import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nc_callbacks import FeatureSpectrum, NeuralCollapse, QuasiInterpolation, WeightMeanAlignment

RELIED_ON = json.loads(Path(__file__).with_name("surface.json").read_text())


class TwoLayers(LightningModule):
    def __init__(self):
        super().__init__()
        self.first, self.fc = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.fc(self.first(x).tanh())

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def observed(folder):
    """What a fit with every option and two validation loaders logs, keeps and writes."""
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(24, 4), torch.arange(24) % 3)
    loader = DataLoader(data, batch_size=8)
    shared = {"layers": ["first"], "splits": ["train", "val"]}
    callbacks = [
        NeuralCollapse(ood_loader=DataLoader(torch.randn(8, 4), 8), ood_scores=True, mse_weight_decay=0.1, **shared),
        WeightMeanAlignment(a2_residual=True, implicit="full", **shared),
        QuasiInterpolation(outputs="softmax", samples=[0, 1], **shared),
        FeatureSpectrum(**shared),
    ]
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=callbacks,
    )
    trainer.fit(TwoLayers(), loader, [loader, loader])
    with open(folder / "quasi_interpolation_samples.csv") as file:
        samples = next(csv.reader(file))
    return {
        "logged": sorted(key for key in trainer.callback_metrics if key.startswith("nc/")),
        "latest": {type(callback).__name__: sorted(callback.latest) for callback in callbacks},
        "history": {type(callback).__name__: sorted(callback.history[0]) for callback in callbacks},
        "columns of samples": samples,
    }


@pytest.mark.filterwarnings("ignore")
def test_log_keys_and_columns_are_those_relied_on(tmp_path):
    found = observed(tmp_path)
    for kind, expected in RELIED_ON["fit"].items():
        if isinstance(expected, dict):
            for name, keys in expected.items():
                assert set(keys) <= set(found[kind][name]), (kind, name)
        else:
            assert set(expected) <= set(found[kind]), kind


@pytest.mark.filterwarnings("ignore:.* is now nc_callbacks:DeprecationWarning")
@pytest.mark.parametrize("module", RELIED_ON["names"])
def test_public_names_are_where_they_were(module):
    there = importlib.import_module(module)
    assert [name for name in RELIED_ON["names"][module] if not callable(getattr(there, name, None))] == []
