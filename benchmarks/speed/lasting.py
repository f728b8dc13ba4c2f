"""What stays of many looks: a checkpoint after 1,000 of them, and the memory of a process over 300.

`python benchmarks/run.py --only lasting`
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset

from speed.fits import Clock, Idle, all_four, fit
from speed.measure import Options, Row, in_fresh_process, status_kib

LOOKS = 300
SETTLED = 10
"""Looks after which the memory that all further ones use again has been taken."""


def rows(options: Options) -> Iterator[Row]:
    if options.device.type != "cpu":
        return
    sizes = [checkpoint_size(looks, options) / 2**20 for looks in (1_000, 2_000)]
    what = "1,000 looks, k = 100, p = 128, all four, both splits"
    yield Row("checkpoint: the callbacks' part", what, sizes[0], "MiB", 2, f"{sizes[1]:.3g} MiB after 2,000")
    looks = 60 if options.quick else LOOKS
    what = f"look {looks} against look {SETTLED}, k = 10, p = 64, all four, both splits"
    growth = in_fresh_process(growth_of_process, looks, True, options)
    yield Row("memory of the process, history left out", what, growth, "MiB", 1)
    growth = in_fresh_process(growth_of_process, looks, False, options)
    a_look = f"{1024 * growth / (looks - SETTLED):.3g} KiB a look"
    yield Row("the same, history kept", what, growth, "MiB", None, a_look)


def _fit(k: int, epochs: int, options: Options, callbacks: list[L.Callback]) -> None:
    generator = torch.Generator().manual_seed(0)
    p = 128 if k > 64 else 64
    images, targets = torch.randn(4 * k, 1, 8, 8, generator=generator), torch.arange(4 * k) % k
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, p), torch.nn.ReLU(), torch.nn.Linear(p, k))
    model = Idle(
        network,
        loss=torch.nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD,
        scheduler=lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, []),
    )
    loaders = [DataLoader(TensorDataset(images, targets), 64) for _ in range(2)]
    fit(model, loaders[0], callbacks, epochs, options, val_loader=loaders[1])


def checkpoint_size(looks: int, options: Options) -> int:
    """Bytes of the states of all four callbacks, of two looks that are repeated as if training had gone on."""
    callbacks: list[Any] = all_four(splits=("train", "val"))
    _fit(100, 2, options, callbacks)
    states = {}
    for callback in callbacks:
        found = callback.history
        callback.history = [{**found[row % 2], "epoch": row, "step": row} for row in range(looks)]
        states[callback.state_key] = callback.state_dict()
    buffer = io.BytesIO()
    torch.save(states, buffer)
    return len(buffer.getbuffer())


def growth_of_process(looks: int, clear: bool, options: Options) -> float:
    """MiB by which the process grows from the tenth look on; `clear` empties the history after each."""
    held: list[int] = []

    def note(trainer: L.Trainer, model: L.LightningModule) -> None:
        held.append(status_kib("VmRSS"))
        for callback in callbacks if clear else ():
            callback.history.clear()

    callbacks: list[Any] = all_four(splits=("train", "val"))
    _fit(10, looks, options, [*callbacks, Clock(on_train_epoch_end=note)])
    return (held[-1] - held[SETTLED - 1]) / 2**10
