"""A look on little data, and the same at eight further layers, by CPU time with one thread.

`python benchmarks/run.py --only small`
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import lightning as L

from nc_callbacks import NeuralCollapse
from nc_callbacks.experiments.data import ImageData
from speed.fits import Clock, Idle, all_four, first, fit, infer, large_images, loader_of, model_of
from speed.looks import Seconds, ratio_row
from speed.measure import Options, Row, threads_of


def rows(options: Options) -> Iterator[Row]:
    if options.device.type != "cpu":
        return
    with threads_of(1):
        yield _digits(options)
        yield _blocks(options)


def _digits(options: Options) -> Row:
    """All four callbacks on both splits with their logging, beside one inference pass over both loaders."""
    data = ImageData("digits")
    data.setup()
    loaders = data.train_dataloader(), data.val_dataloader()
    seconds: Seconds = {"look": [], "pass": []}
    began = 0.0

    def before(trainer: L.Trainer, model: L.LightningModule) -> None:
        nonlocal began
        began = time.process_time()

    def after(trainer: L.Trainer, model: L.LightningModule) -> None:
        start = time.process_time()
        seconds["look"].append(start - began)
        for loader in loaders:
            infer(model, loader)
        seconds["pass"].append(time.process_time() - start)

    callbacks = [
        Clock(on_train_epoch_end=before),
        *all_four(splits=("train", "val")),
        Clock(on_train_epoch_end=after),
    ]
    assert data.train_set is not None
    epochs = 1 + (7 if options.quick else 15)
    model = model_of(Idle, "cnn", data.train_set.tensors)
    fit(model, loaders[0], callbacks, epochs, options, val_loader=loaders[1])
    what = "cnn, 1,437 + 360 × 8 × 8, both splits"
    look, inference = (values[1:] for values in seconds.values())
    return ratio_row("look on digits, all four / inference pass", what, look, inference, 1.25)


def _blocks(options: Options) -> Row:
    """The looks of two callbacks, in turns: at the classifier's input alone, and at that of every block too."""
    samples = 128 if options.quick else 512
    images = first(large_images(None), samples)
    seconds: Seconds = {"blocks": [], "alone": []}
    began = 0.0

    def before(trainer: L.Trainer, model: L.LightningModule) -> None:
        nonlocal began
        began = time.process_time()

    def after(trainer: L.Trainer, model: L.LightningModule) -> None:
        name = "blocks" if trainer.current_epoch % 2 else "alone"
        seconds[name].append(time.process_time() - began)

    pairs = 1 if options.quick else 5
    epochs = 2 * (1 + pairs)
    alone = NeuralCollapse(epochs=range(0, epochs, 2))
    blocks = NeuralCollapse(layers="blocks", epochs=range(1, epochs, 2), prefix="blocks")
    callbacks = [Clock(on_train_epoch_end=before), alone, blocks, Clock(on_train_epoch_end=after)]
    fit(model_of(Idle, "resnet18", images), loader_of(images), callbacks, epochs, options)
    what = f"resnet18, {samples:,} × 28 × 28, {len(blocks.layers)} further layers"
    ours, limit = (values[1:] for values in seconds.values())
    return ratio_row("look at all blocks / at the last layer alone", what, ours, limit, 1.5)
