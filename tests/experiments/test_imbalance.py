"""Unbalanced digits: how many samples a class keeps, and the accuracy of the rare ones."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nc_callbacks.experiments.data import ImageData, long_tailed
from nc_callbacks.experiments.module import ImageClassifier


def test_samples_of_the_classes_fall_geometrically():
    data = ImageData("digits", imbalance=100)
    data.setup()
    counts = data.class_counts.tolist()
    n = counts[0]
    assert counts == [max(1, round(n * 100 ** (-c / 9))) for c in range(10)]
    whole = ImageData("digits")
    whole.setup()
    assert n == whole.class_counts.min()
    assert len(data.val_set) == len(whole.val_set)


def test_draws_follow_the_seed():
    labels = torch.arange(100) % 2
    first, again, other = (long_tailed(labels, 5, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(first.unique()) == len(first)
    with pytest.raises(ValueError, match=r"imbalance must be at least 1, got 0\.5"):
        long_tailed(labels, 0.5, 0)


class Known(nn.Module):
    """Says the class that the first pixel holds."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images):
        return self.scale * nn.functional.one_hot(images.long(), 4).float()


def fitted(counts):
    said = torch.tensor([0, 1, 2, 0, 2, 3, 2, 3, 1, 3])
    targets = torch.tensor([0, 1, 2, 2, 2, 3, 3, 3, 1, 0])
    model = ImageClassifier(
        Known(),
        nn.CrossEntropyLoss(),
        lambda parameters: torch.optim.SGD(parameters, 0.0),
        lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer),
        torch.tensor(counts),
    )
    trainer = L.Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
    )
    # The first batch has no sample of a rare class, and the last is smaller.
    loader = DataLoader(TensorDataset(said, targets), batch_size=2)
    trainer.fit(model, loader, loader)
    return trainer.callback_metrics


def test_accuracy_of_rare_classes_counts_their_samples():
    metrics = fitted([100, 90, 20, 5])
    # Targets 2, 2, 2, 3, 3, 3, of which 2, 0, 2, 3, 2, 3 are said.
    assert metrics["val/accuracy_rare"] == pytest.approx(4 / 6)
    assert metrics["val/accuracy"] == pytest.approx(7 / 10)


def test_balanced_classes_have_no_rare_ones():
    assert "val/accuracy_rare" not in fitted([9, 10, 10, 10])
