"""A trainer of one process among several of a group, which do something else."""

from typing import Any

import torch.distributed as dist

from nc_callbacks import CentredMeanInit, FeatureSpectrum, NeuralCollapse, QuasiInterpolation, WeightMeanAlignment
from tests.callbacks.common import trainer
from tests.engine.ranks_script import Still, data


def fit_on_the_first() -> dict[str, Any]:
    """Counts of the first rank, and how many keys its callbacks have logged; nothing on others."""
    found = {}
    if dist.get_rank() == 0:
        settings = {"head": "head", "splits": ["train", "val"]}
        callbacks = [
            NeuralCollapse(ood_loader=data(5), **settings),
            WeightMeanAlignment(a2_residual=True, **settings),
            QuasiInterpolation(outputs="softmax", **settings),
            FeatureSpectrum(**settings),
        ]
        fit = trainer(CentredMeanInit(head="head"), *callbacks, accelerator="cpu", devices=1)
        fit.fit(Still(), data(0), data(1))
        fit.validate(Still(), data(1), verbose=False)
        (train,) = callbacks[0].history
        counts = train["nc/train/counts"].tolist()
        found = {"counts": counts, "keys": sum(len(callback.latest) for callback in callbacks)}
    dist.barrier()
    return found
