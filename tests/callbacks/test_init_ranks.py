"""Ranks start their training with the same classifier, at the class means of all."""

from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from nc_callbacks import CentredMeanInit
from tests.callbacks.common import Classifier, loader, trainer
from tests.callbacks.test_centred_mean_init import start_of
from tests.processes import on_ranks


class Keep(L.Callback):
    """Keeps the classifier as it is before the first step."""

    weight: torch.Tensor

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 0:
            self.weight = pl_module.head.weight.detach().clone()


def start(processes: int) -> torch.Tensor:
    """This rank's classifier."""
    # Of 80 samples, the last of three ranks has 26: one batch less than the others.
    keep = Keep()
    callbacks = [CentredMeanInit(head="head", scale=1.0, freeze_backbone=True), keep]
    trainer(*callbacks, devices=processes, strategy="ddp").fit(Classifier(), loader(batch_size=26))
    return keep.weight


@pytest.mark.parametrize("processes", [2, 3])
def test_ranks_start_alike(processes):
    weights = on_ranks(start, processes, processes)
    assert all(torch.equal(weight, weights[0]) for weight in weights)
    np.testing.assert_allclose(weights[0], start_of(Classifier()), rtol=1e-4, atol=1e-5)
