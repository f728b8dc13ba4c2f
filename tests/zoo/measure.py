"""A set-up trained under the callbacks, and the same numbers from the model's own features."""

from __future__ import annotations

import copy
import math
import tempfile
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from nc_callbacks import NeuralCollapse, WeightMeanAlignment
from tests import reference
from tests.zoo.setups import Setup, as_arrays


class EndOfEpoch(L.Callback):
    """Keeps the weights of the last epoch's end."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.state = copy.deepcopy(pl_module.state_dict())


def logged(setup: Setup) -> tuple[str, dict[str, float]]:
    """The classifier that the callbacks found, and the metrics of their last look; weights of it stay in the module."""
    torch.manual_seed(1)
    ours: list[L.Callback] = [NeuralCollapse(**setup.arguments), WeightMeanAlignment(**setup.arguments)]
    end = EndOfEpoch()
    ours = (setup.fit or _fit)(setup, ours, end) or ours
    if setup.seen == "epoch":
        setup.module.load_state_dict(end.state)
    return found_by(ours)


def _fit(setup: Setup, ours: list[L.Callback], end: L.Callback) -> None:
    loader = setup.loader if setup.loader_of_fit is None else setup.loader_of_fit
    trainer_of([*setup.callbacks, *ours, end], **setup.trainer).fit(setup.module, loader)


def found_by(callbacks: list[L.Callback]) -> tuple[str, dict[str, float]]:
    """The classifier, and what was last logged of it."""
    measuring = [callback for callback in callbacks if getattr(callback, "latest", None)]
    found = {key: value for callback in measuring for key, value in callback.latest.items()}
    numbers = {key.rpartition("/")[2]: v for key, v in found.items() if key.count("/") == 2 and isinstance(v, float)}
    return measuring[0].head, numbers


def trainer_of(callbacks: list[L.Callback], **settings: Any) -> L.Trainer:
    """A quiet trainer of one epoch."""
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    folder = tempfile.mkdtemp()
    return L.Trainer(
        **(quiet | {"max_epochs": 1, "accelerator": "cpu", "default_root_dir": folder} | settings), callbacks=callbacks
    )


def expected(setup: Setup) -> dict[str, float]:
    """The metrics from their definitions, of the features that a hook takes at the known classifier."""
    features, outputs, targets = _seen(setup.module.eval(), setup)
    weight, bias = setup.weight(setup.module.get_submodule(setup.head))
    h, y, f = features.numpy(), targets.numpy(), outputs.numpy()
    k = f.shape[1]
    assert set(y) == set(range(k))
    moments = reference.moments(h, y, k)
    means = moments.means
    vectors = reference.centred(means)
    numbers = {
        "nc1": reference.nc1(moments.within, means),
        "nc1_quotient": reference.nc1_quotient(moments.within, means),
        "nc1_cdnv": reference.nc1_cdnv(moments.traces, means),
        "nc2_etf": reference.nc2_etf(vectors),
        "nc2_equinorm": reference.nc2_equinorm(vectors),
        "accuracy": float((f.argmax(1) == y).mean()),
        "ncc_accuracy": float((reference.nearest_mean(h, means) == y).mean()),
        "nc4": float((f.argmax(1) != reference.nearest_mean(h, means)).mean()),
    }
    if weight is not None:
        w, b = as_arrays(weight, torch.zeros(k) if bias is None else bias)
        np.testing.assert_allclose(h @ w.T + b, f, rtol=1e-3, atol=1e-3 * np.abs(f).max())
        numbers |= {
            "nc2_etf_weights": reference.nc2_etf(w),
            "nc3": reference.nc3(w, means),
            "nc3_etf": reference.nc3_etf(w, means),
            "wm_cosine": float(reference.wm_cosine(w, means).mean()),
        }
    return numbers


def _seen(module: L.LightningModule, setup: Setup) -> tuple[Tensor, Tensor, Tensor]:
    """Features, outputs and targets of the whole loader that count, in float64."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []

    def keep(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        inputs.append((*args, *kwargs.values())[0])
        outputs.append(output)

    features, logits, wanted = [], [], []
    hook = module.get_submodule(setup.head).register_forward_hook(keep, with_kwargs=True)
    for batch in setup.loader:
        inputs.clear(), outputs.clear()
        targets = (setup.targets or _labels)(batch).flatten()
        with torch.no_grad():
            setup.run(module, batch)
        rows = [setup.positions(part[0]).reshape(len(targets), -1).double() for part in (inputs, outputs)]
        counts = targets != -100
        features.append(rows[0][counts])
        logits.append(rows[1][counts])
        wanted.append(targets[counts])
    hook.remove()
    return torch.cat(features), torch.cat(logits), torch.cat(wanted)


def _labels(batch: Any) -> Tensor:
    return batch["labels"] if isinstance(batch, dict) else batch[1]


def deviations(found: dict[str, float], wanted: dict[str, float]) -> dict[str, float]:
    """Relative ones, of numbers below a thousandth as if they were that; inf where one is missing."""
    return {name: abs(found.get(name, math.inf) - value) / max(abs(value), 1e-3) for name, value in wanted.items()}
