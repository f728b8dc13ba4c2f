"""What stays of many looks: a checkpoint after 1,000 of them, and the memory of a process over 300.

`python benchmarks/run.py --only lasting`
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator

import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset

from nc_callbacks.experiments.module import ImageClassifier
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
    growth, kept = in_fresh_process(growth_and_history, looks, options)
    what = f"look {looks} against look {SETTLED}, k = 10, p = 64, all four, both splits"
    detail = f"the history of these looks takes {kept:.3g} MiB"
    yield Row("memory of the process beyond the history", what, growth - kept, "MiB", 1, detail)


def _fit(k: int, epochs: int, options: Options, after: Clock) -> list[L.Callback]:
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
    assert isinstance(model, ImageClassifier)
    loaders = [DataLoader(TensorDataset(images, targets), 64) for _ in range(2)]
    callbacks = all_four(splits=("train", "val"))
    fit(model, loaders[0], [*callbacks, after], epochs, options, val_loader=loaders[1])
    return callbacks


def checkpoint_size(looks: int, options: Options) -> int:
    """Bytes of the states of all four callbacks, of two looks that are repeated as if training had gone on."""
    callbacks = _fit(100, 2, options, Clock())
    states = {}
    for callback in callbacks:
        found = callback.history
        callback.history = [{**found[row % 2], "epoch": row, "step": row} for row in range(looks)]
        states[callback.state_key] = callback.state_dict()
    buffer = io.BytesIO()
    torch.save(states, buffer)
    return len(buffer.getbuffer())


def growth_and_history(looks: int, options: Options) -> tuple[float, float]:
    """MiB by which the process grows between two looks, and what the history between them takes of it."""
    held: list[int] = []

    def note(trainer: L.Trainer, model: L.LightningModule) -> None:
        held.append(status_kib("VmRSS"))

    callbacks = _fit(10, looks, options, Clock(on_train_epoch_end=note))
    kept = sum(in_memory(record) for callback in callbacks for record in callback.history[SETTLED:])
    return (held[-1] - held[SETTLED - 1]) / 2**10, kept / 2**20


def in_memory(record: dict[str, object]) -> int:
    """Bytes of one look of a history: the dict, its numbers and its tensors."""
    values = sum(
        sys.getsizeof(value) + (value.nbytes if isinstance(value, torch.Tensor) else 0) for value in record.values()
    )
    return sys.getsizeof(record) + values
