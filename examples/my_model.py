"""A LightningModule and its data, as anyone writes them, with two callbacks: `python examples/my_model.py`.

Handwritten digits (scikit-learn's, nothing is downloaded), seconds on one core. The page is `runs/mine/report.html`.
"""

import lightning as L
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nc_callbacks import NeuralCollapse, ReportPage, WeightMeanAlignment


class MyModel(L.LightningModule):
    """An encoder and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
        self.decoder = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.003)


class MyData(L.LightningDataModule):
    """1,797 digits of 8 × 8 pixels, a fifth of them for validation."""

    def setup(self, stage: str) -> None:
        x, y = load_digits(return_X_y=True)
        parts = train_test_split(x.astype("float32") / 16, y, test_size=0.2, stratify=y, random_state=0)
        x_train, x_val, y_train, y_val = map(torch.from_numpy, parts)
        self.train_set, self.val_set = TensorDataset(x_train, y_train), TensorDataset(x_val, y_val)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_set, batch_size=64, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val_set, batch_size=64)


if __name__ == "__main__":
    L.seed_everything(0)
    collapse = NeuralCollapse(splits=["train", "val"])
    callbacks = [collapse, WeightMeanAlignment(), ReportPage("runs/mine")]
    trainer = L.Trainer(max_epochs=10, callbacks=callbacks)
    trainer.fit(MyModel(), MyData())
    for look in collapse.history[::3]:
        print(f"epoch {look['epoch'] + 1}: nc1 {look['nc/train/nc1']:.3f}, nc4 {look['nc/train/nc4']:.3f}")
    print(f"{collapse.head}: nc1 {collapse.latest['nc/train/nc1']:.3f}")
