"""A look with all four callbacks beside one inference pass, and `mode="online"` beside training without it.

Pairs within one fit: a look and a pass follow each other; epochs with and without gathering take turns.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import lightning as L
import torch

from nc_callbacks.experiments.data import ImageData
from nc_callbacks.experiments.module import ImageClassifier
from speed.fits import BATCH, Clock, Idle, Images, all_four, first, fit, infer, large_images, loader_of, model_of
from speed.measure import Options, Row, scaled, wait

Seconds = dict[str, list[float]]


def rows(options: Options) -> Iterator[Row]:
    large = large_images(options.fashion_mnist)
    sizes = {"cnn": 2_560, "resnet18": 256} if options.quick else {"cnn": 20_480, "resnet18": 1_024}
    if options.device.type == "cuda":
        sizes = dict.fromkeys(sizes, len(large[1]))
    for network, samples in sizes.items():
        found = look_and_pass(network, first(large, samples), options)
        what = f"{network}, {samples:,} × 28 × 28"
        yield ratio_row("look, all four / inference pass", what, found["look"], found["pass"], 1.1)
    data = ImageData("digits")
    data.setup()
    assert data.train_set is not None
    digits: Images = data.train_set.tensors
    for network, images, goal in (("resnet18", first(large, sizes["resnet18"]), 1.03), ("cnn", digits, 1.1)):
        found = online_and_plain(network, images, options)
        what = f"{network}, batch {BATCH}" + (", digits" if images is digits else "")
        yield ratio_row("online, all four / training step", what, found["online"], found["plain"], goal)
        if images is digits:
            steps = len(digits[1]) // BATCH
            what = f"{what}, {steps} steps and the metrics"
            yield ratio_row("online / a whole epoch", what, found["online epoch"], found["plain epoch"], None)


def ratio_row(group: str, what: str, ours: list[float], limit: list[float], goal: float | None) -> Row:
    ratio = median(a / b for a, b in zip(ours, limit, strict=True))
    return Row(group, what, ratio, "×", goal, f"{scaled(median(ours))} against {scaled(median(limit))}")


def look_and_pass(
    network: str, images: Images, options: Options, precision: Any = "32-true", slices: int | None = None
) -> Seconds:
    """Seconds of looks, and of inference passes over the trainer's loader, or over slices of so many images."""
    loader = loader_of(images, slices or BATCH)
    batches = loader if slices is None else list(zip(*(tensor.split(slices) for tensor in images), strict=True))
    seconds: Seconds = {"look": [], "pass": []}
    began = 0.0

    def before(trainer: L.Trainer, model: L.LightningModule) -> None:
        nonlocal began
        began = _now(model.device)

    def after(trainer: L.Trainer, model: L.LightningModule) -> None:
        seconds["look"].append(_now(model.device) - began)
        start = _now(model.device)
        with trainer.precision_plugin.val_step_context():
            infer(model, batches)
        seconds["pass"].append(_now(model.device) - start)

    callbacks = [Clock(on_train_epoch_end=before), *all_four(), Clock(on_train_epoch_end=after)]
    fit(model_of(Idle, network, images), loader, callbacks, _pairs(options) + 1, options, precision)
    return {name: values[1:] for name, values in seconds.items()}


def online_and_plain(network: str, images: Images, options: Options) -> Seconds:
    """Seconds of all training steps of an epoch, and of epochs with their metrics, in turn without and with."""
    loader = loader_of(images)
    seconds: Seconds = {"plain": [], "online": [], "plain epoch": [], "online epoch": []}
    began = {"step": 0.0, "epoch": 0.0}

    def name(trainer: L.Trainer) -> str:
        return "online" if trainer.current_epoch % 2 else "plain"

    def begin_epoch(trainer: L.Trainer, model: L.LightningModule) -> None:
        seconds[name(trainer)].append(0.0)
        began["epoch"] = _now(model.device)

    def begin_step(trainer: L.Trainer, model: L.LightningModule, *_: object) -> None:
        began["step"] = _now(model.device)

    def end_step(trainer: L.Trainer, model: L.LightningModule, *_: object) -> None:
        seconds[name(trainer)][-1] += _now(model.device) - began["step"]

    def end_epoch(trainer: L.Trainer, model: L.LightningModule) -> None:
        seconds[f"{name(trainer)} epoch"].append(_now(model.device) - began["epoch"])

    start = Clock(on_train_epoch_start=begin_epoch, on_train_batch_start=begin_step)
    end = Clock(on_train_batch_end=end_step, on_train_epoch_end=end_epoch)
    callbacks = [start, *all_four(mode="online", every_n_epochs=2), end]
    fit(model_of(ImageClassifier, network, images), loader, callbacks, 2 * _pairs(options) + 2, options)
    return {key: values[1:] for key, values in seconds.items()}


def _pairs(options: Options) -> int:
    return 5 if options.quick else 7


def _now(device: torch.device) -> float:
    wait(device)
    return time.perf_counter()
