"""Is a head from moments as good as a trained one? Heads on noisy targets, over data sets, activations and samples."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import torch
from jaxtyping import Float, Int
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import TensorDataset

from nc_callbacks.experiments.data import ImageData
from nc_callbacks.experiments.image_folder import ImageFolderData
from nc_callbacks.experiments.logistic import logistic_logits
from nc_callbacks.experiments.transfer import (
    Row,
    features_of,
    print_rows,
    train_and_answer,
    trained_network,
    with_noise,
    write_rows,
)
from nc_callbacks.experiments.transfer_noise import METHODS, WHITENED, make_head, steps_to_look_at

TRAINED = ("LWM", "WFS", "WICM", "whitened start", "logistic")
"""Methods that look at the target's samples more than once."""

CELL = ("data", "activation", "variance", "samples", "method")

Sets = tuple[Float[Tensor, "s n p"], Int[Tensor, "s n"], Float[Tensor, "s m p"]]


@dataclass(frozen=True)
class Training:
    """How heads are trained."""

    steps: int
    batch_size: int
    learning_rate: float
    scale: float


def run(
    config: DictConfig,
    folder: str | Path,
    *,
    datasets: Sequence[Mapping[str, Any]],
    activations: Sequence[str],
    samples: Sequence[int],
    variances: Sequence[float],
    source_samples: int,
    test_samples: int,
    seeds: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    scale: float,
) -> None:
    """Train source networks, then heads on noisy versions of their data; write tables and two figures.

    ``heads.csv`` has a row per data set, activation, noise, number of samples, method and seed: test accuracy, expected
    calibration error, seconds from the features to the head, and the first step with 99 % of the accuracy of the best
    trained head (empty: none). ``cells.csv`` has their means over the seeds, ``curves.csv`` accuracies over steps.

    Args:
        config: The configuration of `train.py`: model, loss, optimizer, trainer, and where the data lies.
        folder: The run folder.
        datasets: ``name`` of each and the ``epochs`` of its source networks; where it does not lie in ``data.root``
            its ``root``, and for ``image_folder`` its ``size``.
        activations: Of the source networks.
        samples: Numbers of target samples (all there are, where there are fewer; each number once).
        variances: σ² of the noise on the target's images.
        source_samples: Training images of a source network at most.
        test_samples: Test images at most.
        seeds: How often samples, noise and random weights are drawn; at least 2, for a standard deviation.
        steps: Optimiser steps of each head.
        batch_size: Samples a step.
        learning_rate: Of Adam.
        scale: Of M̄ at the start.

    Raises:
        ValueError: An argument is out of its range.
    """
    from nc_callbacks.figures.heads import heads_figure, starts_figure

    if seeds < 2 or steps < 1 or not datasets or not activations or not samples or not variances:
        raise ValueError(
            "Expected seeds ≥ 2, steps ≥ 1 and at least one data set, activation, number of samples and variance; got "
            f"seeds={seeds}, steps={steps}, datasets={list(datasets)}, activations={list(activations)}, "
            f"samples={list(samples)}, variances={list(variances)}."
        )
    folder, training = Path(folder), Training(steps, batch_size, learning_rate, scale)
    rows: list[Row] = []
    curves: list[Row] = []
    loaded = [_loaded(config, entry) for entry in datasets]
    for data, entry in zip(loaded, datasets, strict=True):
        assert isinstance(data.train_set, TensorDataset)
        assert isinstance(data.val_set, TensorDataset)
        (images, targets), (test_images, test_targets) = data.train_set.tensors, data.val_set.tensors
        test_images, test_targets = test_images[:test_samples], test_targets[:test_samples]
        sizes = sorted({min(n, len(images)) for n in samples})
        for activation in activations:
            torch.manual_seed(config.seed)
            network = trained_network(
                config, images[:source_samples], targets[:source_samples], entry["epochs"], activation=activation
            )
            device = next(network.parameters()).device
            for variance in variances:
                for n, sets in _drawn(network, (images, targets), test_images, variance, sizes, seeds):
                    cell = {"data": entry["name"], "activation": activation, "variance": variance, "samples": n}
                    of_cell, of_steps = compare(sets, test_targets, data.num_classes, training, device)
                    rows += [{**cell, **row} for row in of_cell]
                    curves += [{**cell, **row} for row in of_steps]
                    write_rows(folder / "heads.csv", rows)
                    write_rows(folder / "curves.csv", curves)
            print(f"{entry['name']}, {activation}: done")
    cells = means_over_seeds(rows)
    write_rows(folder / "cells.csv", cells)
    print_rows("Means over seeds", cells)
    print_rows("In one line", [summary(cells)])
    heads_figure(cells).savefig(folder / "heads.png", dpi=130)
    starts_figure(curves).savefig(folder / "starts.png", dpi=130)
    print(f"\nRun folder: {folder}")


def _loaded(config: DictConfig, entry: Mapping[str, Any]) -> ImageData | ImageFolderData:
    root, name = entry.get("root", config.data.root), entry["name"]
    data: ImageData | ImageFolderData
    if name == "image_folder":
        data = ImageFolderData(root, entry.get("size", 32), memory=math.inf, seed=config.seed)
    else:
        data = ImageData(name, root=root, download=config.data.download, seed=config.seed)
    data.setup()
    return data


def _drawn(
    network: Any, train: tuple[Tensor, Tensor], test_images: Tensor, variance: float, sizes: Sequence[int], seeds: int
) -> Iterator[tuple[int, Sets]]:
    """Features of each seed's samples, for each number of them; a smaller number is the beginning of a larger one."""
    images, targets = train
    drawn = []
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(images), generator=generator)[: sizes[-1]]
        own = features_of(network, with_noise(images[chosen], variance, generator))
        drawn.append((own, targets[chosen], features_of(network, with_noise(test_images, variance, generator))))
    x, y, test = map(torch.stack, zip(*drawn, strict=True))
    return ((n, (x[:, :n], y[:, :n], test)) for n in sizes)


def compare(
    sets: Sets, test_targets: Int[Tensor, " m"], k: int, training: Training, device: torch.device | str = "cpu"
) -> tuple[list[Row], list[Row]]:
    """All methods on the same features: a row per method and seed, and accuracies over steps.

    Heads without training are made on the CPU, the others on `device`.
    """
    x, y, test = sets
    there = (x.to(device), y.to(device)), (test.to(device), test_targets.to(device))
    accuracies, logits, seconds = {}, {}, {}
    looks = steps_to_look_at(training.steps)
    for method, mode in {**METHODS, **WHITENED}.items():
        start = time.perf_counter()
        heads = [make_head(mode, *one, k, training.scale, method in WHITENED) for one in zip(x, y, strict=True)]
        if mode == "fixed":
            seconds[method] = (time.perf_counter() - start) / len(x)
            logits[method] = torch.stack([head(features) for head, features in zip(heads, test, strict=True)])
            accuracies[method] = accuracy(logits[method], test_targets)[:, None]
        else:
            settings = looks, training.batch_size, training.learning_rate
            accuracies[method], logits[method] = train_and_answer(heads, there[0], there[1], *settings)
            seconds[method] = (time.perf_counter() - start) / len(x)
    start = time.perf_counter()
    own = zip(x, y, test, strict=True)
    answers = [logistic_logits((a, b), c, k, seed=seed, device=device) for seed, (a, b, c) in enumerate(own)]
    logits["logistic"], seconds["logistic"] = torch.stack(answers), (time.perf_counter() - start) / len(x)
    accuracies["logistic"] = accuracy(logits["logistic"], test_targets)[:, None]
    best = torch.stack([accuracies[method][:, -1] for method in TRAINED if method != "whitened start"]).amax(0)
    rows: list[Row] = []
    curves: list[Row] = []
    for method, curve in accuracies.items():
        errors = calibration_error(logits[method], test_targets)
        for seed in range(len(x)):
            reached = (curve[seed] >= 0.99 * best[seed]).nonzero()
            rows.append(
                {
                    "method": method,
                    "seed": seed,
                    "accuracy": float(curve[seed, -1]),
                    "ece": float(errors[seed]),
                    "seconds": seconds[method],
                    "steps": looks[int(reached[0])] if len(reached) and method != "logistic" else "",
                }
            )
            if curve.shape[1] > 1:
                curves += [
                    {"method": method, "seed": seed, "step": step, "accuracy": float(value)}
                    for step, value in zip(looks, curve[seed], strict=True)
                ]
    return rows, curves


def accuracy(logits: Float[Tensor, "s m k"], targets: Int[Tensor, " m"]) -> Float[Tensor, " s"]:
    """Share of samples whose largest logit is their own, seed by seed."""
    return (logits.argmax(-1) == targets).float().mean(1)


def calibration_error(
    logits: Float[Tensor, "s m k"], targets: Int[Tensor, " m"], bins: int = 15
) -> Float[Tensor, " s"]:
    """Expected calibration error (Guo et al. 2017), seed by seed: mean |accuracy − confidence| over bins.

    Bins are of equal width and weigh as many samples as they hold.

    Example:
        >>> sure = torch.tensor([[[9.0, -9.0], [9.0, -9.0]]])
        >>> calibration_error(sure, torch.tensor([0, 1]))
        tensor([0.5000])
    """
    confidence, predicted = logits.softmax(-1).max(-1)
    gap = (predicted == targets).float() - confidence
    place = (confidence * bins).long().clamp(max=bins - 1)
    sums = gap.new_zeros(len(logits), bins).scatter_add(1, place, gap)
    return sums.abs().sum(1) / logits.shape[1]


def means_over_seeds(rows: Sequence[Row]) -> list[Row]:
    """A row per cell and method; steps are the median, in which «none» counts as more than all."""
    cells: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        cells.setdefault(tuple(row[key] for key in CELL), []).append(row)
    found: list[Row] = []
    for cell, own in cells.items():
        middle = median(float("inf") if row["steps"] == "" else row["steps"] for row in own)
        found.append(
            {
                **dict(zip(CELL, cell, strict=True)),
                "accuracy": fmean(row["accuracy"] for row in own),
                "accuracy_std": stdev(row["accuracy"] for row in own),
                "ece": fmean(row["ece"] for row in own),
                "seconds": fmean(row["seconds"] for row in own),
                "steps": "" if middle == float("inf") else middle,
            }
        )
    return found


def summary(cells: Sequence[Row]) -> Row:
    """In how many cells the goals are reached: of the head without training, and of the start."""
    by_cell: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in cells:
        by_cell.setdefault(tuple(row[key] for key in CELL[:-1]), {})[row["method"]] = row
    best = {cell: max(of[method]["accuracy"] for method in TRAINED if method in of) for cell, of in by_cell.items()}
    gaps = [of["whitened"]["accuracy"] - best[cell] for cell, of in by_cell.items()]
    centred = [of["CM"]["accuracy"] - best[cell] for cell, of in by_cell.items()]
    steps = [(of["whitened start"]["steps"], of["WICM"]["steps"]) for of in by_cell.values()]
    # A start that the other one never reaches 99 % from is at most half of it.
    halves = [a != "" and (b == "" or a <= b / 2) for a, b in steps]
    return {
        "cells": len(gaps),
        "whitened within 0.5 points of the best trained head": sum(gap >= -0.005 for gap in gaps),
        "mean gap, points": 100 * fmean(gaps),
        "mean gap of CM, points": 100 * fmean(centred),
        "whitened start in at most half of WICM's steps": sum(halves),
    }
