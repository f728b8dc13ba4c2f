"""Fig. 3 of Seddik & Tamaazousti (2022): four ways to a head on noisy versions of the source's images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Literal

import torch
from hydra.utils import instantiate
from jaxtyping import Float, Int
from omegaconf import DictConfig
from torch import Tensor, nn

from nc_callbacks.experiments.identity import write_data_file
from nc_callbacks.experiments.transfer import (
    Row,
    features_of,
    print_rows,
    train_heads,
    trained_network,
    with_noise,
    write_rows,
)
from nc_callbacks.transfer.head import CentredMeanHead, HeadMode

METHODS: dict[str, HeadMode | None] = {"CM": "fixed", "LWM": "mixing", "WFS": None, "WICM": "trainable"}
"""The paper's names, and the mode of `CentredMeanHead` that each is; WFS is a linear layer with random weights."""

WHITENED: dict[str, HeadMode | None] = {"whitened": "fixed", "whitened start": "trainable"}
"""Heads whitened by Σ_W: without training, and as where training starts."""


def run(
    config: DictConfig,
    folder: str | Path,
    *,
    variances: Sequence[float],
    curve_variances: Sequence[float],
    samples: int,
    seeds: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    scale: float | Literal["fit"],
    methods: Sequence[str] = tuple(METHODS),
) -> None:
    """Train a source network on clean images, then heads on noisy ones; write CSV files and two figures.

    ``curves.csv`` has the test accuracy over steps of each method, variance and seed, ``accuracy.csv`` mean and
    standard deviation over seeds after the last step, ``steps.csv`` the steps that each head takes to 99 % of the final
    accuracy of WFS (empty: more than it was given).

    Args:
        config: The configuration of `train.py`: data, model, loss, optimizer and trainer are those of the source.
        folder: The run folder.
        variances: σ² of the noise on the target's images, training and test alike; pixels lie in [0, 1].
        curve_variances: Those of which accuracies over steps are drawn.
        samples: Target training images drawn at random for each seed (all, where there are fewer).
        seeds: How often samples, noise and random weights are drawn; at least 2, for a standard deviation.
        steps: Optimiser steps of each head.
        batch_size: Samples a step.
        learning_rate: Of Adam.
        scale: Of M̄ at the start, or ``"fit"``; see `CentredMeanHead.fit_scale`.
        methods: Which of the paper's four heads, ``"whitened"`` and ``"whitened start"``; WFS among them.

    Raises:
        ValueError: An argument is out of its range.
    """
    from nc_callbacks.figures.transfer import accuracy_figure, steps_figure

    if seeds < 2 or steps < 1 or not set(curve_variances) <= set(variances):
        raise ValueError(
            f"Expected seeds ≥ 2, steps ≥ 1 and curve_variances among variances; got seeds={seeds}, steps={steps}, "
            f"curve_variances={list(curve_variances)}, variances={list(variances)}."
        )
    known = {**METHODS, **WHITENED}
    if not {"WFS"} <= set(methods) <= set(known):
        raise ValueError(f"methods must be among {', '.join(known)}, with WFS, which goals are of; got {[*methods]}.")
    data = instantiate(config.data)
    data.setup()
    write_data_file(data, folder)
    (images, targets), (test_images, test_targets) = data.train_set.tensors, data.val_set.tensors
    network = trained_network(config, images, targets, config.trainer.max_epochs)
    device = next(network.parameters()).device
    evaluate_at = steps_to_look_at(steps)
    rows: list[Row] = []
    for variance in variances:
        drawn = []
        for seed in range(seeds):
            generator = torch.Generator().manual_seed(seed)
            chosen = torch.randperm(len(images), generator=generator)[:samples]
            train = features_of(network, with_noise(images[chosen], variance, generator))
            test = features_of(network, with_noise(test_images, variance, generator))
            drawn.append((train, targets[chosen], test))
        train, train_targets, test = map(torch.stack, zip(*drawn, strict=True))
        for method in methods:
            mode, k = known[method], data.num_classes
            heads = [
                make_head(mode, x, y, k, scale, method in WHITENED) for x, y in zip(train, train_targets, strict=True)
            ]
            if mode == "fixed":
                at = [0]
                accuracies = torch.stack(
                    [(head(x).argmax(1) == test_targets) for head, x in zip(heads, test, strict=True)]
                )
                accuracies = accuracies.float().mean(1, keepdim=True)
            else:
                at = evaluate_at
                own, other = (train.to(device), train_targets.to(device)), (test.to(device), test_targets.to(device))
                accuracies = train_heads(heads, own, other, at, batch_size, learning_rate)
            for seed, curve in enumerate(accuracies.tolist()):
                for step, accuracy in zip(at, curve, strict=True):
                    rows.append(
                        {"method": method, "variance": variance, "seed": seed, "step": step, "accuracy": accuracy}
                    )
    folder = Path(folder)
    final, speed = final_accuracies(rows), steps_to_reach(rows)
    for name, table in (("curves", rows), ("accuracy", final), ("steps", speed)):
        write_rows(folder / f"{name}.csv", table)
    print_rows("Test accuracy after the last step", final)
    print_rows("Steps to 99 % of the final accuracy of WFS", speed)
    accuracy_figure(final).savefig(folder / "transfer_accuracy.png", dpi=130)
    steps_figure(rows, curve_variances).savefig(folder / "transfer_steps.png", dpi=130)
    print(f"\nRun folder: {folder}")


def make_head(
    mode: HeadMode | None,
    features: Float[Tensor, "n p"],
    targets: Int[Tensor, " n"],
    num_classes: int,
    scale: float | Literal["fit"],
    whiten: bool = False,
) -> nn.Module:
    """A head before training: class means in that mode, or for None a linear layer with random weights.

    The scale is that of centred means; logits of the whitened head are those of a posterior as they stand.
    """
    if mode is None:
        return nn.Linear(features.shape[1], num_classes, bias=False)
    given = 1.0 if whiten or scale == "fit" else scale
    head = CentredMeanHead(features.shape[1], num_classes, mode, scale=given, whiten=whiten)
    head.update(features, targets)
    head.finalize()
    if scale == "fit":
        head.fit_scale(features, targets)
    return head


def steps_to_look_at(steps: int) -> list[int]:
    """Every step up to 50, then about every 50th part more, and the last.

    Example:
        >>> steps_to_look_at(104)[98:], len(steps_to_look_at(1000))
        ([98, 99, 100, 102, 104], 230)
    """
    looks = [0]
    while looks[-1] < steps:
        looks.append(min(steps, looks[-1] + max(1, looks[-1] // 50)))
    return looks


def final_accuracies(rows: Sequence[Row]) -> list[Row]:
    """Mean and standard deviation over seeds (divisor seeds − 1) of the last accuracy, by variance and method."""
    last: dict[tuple[float, str], dict[int, float]] = {}
    for row in rows:
        last.setdefault((row["variance"], row["method"]), {})[row["seed"]] = row["accuracy"]
    return [
        {"variance": variance, "method": method, "mean": fmean(of.values()), "std": stdev(of.values())}
        for (variance, method), of in last.items()
    ]


def steps_to_reach(rows: Sequence[Row], share: float = 0.99) -> list[Row]:
    """First step at which each head has that share of the final accuracy of WFS of its variance and seed.

    The column ``mean curve`` is that of the accuracies averaged over seeds; a single test sample counts less there.
    """
    curves: dict[tuple[float, str], dict[str, dict[int, float]]] = {}
    for row in rows:
        by_seed = curves.setdefault((row["variance"], row["method"]), {})
        by_seed.setdefault(f"seed {row['seed']}", {})[row["step"]] = row["accuracy"]
    for by_seed in curves.values():
        own = list(by_seed.values())
        by_seed["mean curve"] = {step: fmean(curve[step] for curve in own) for step in own[0]}

    def first(variance: float, seed: str, curve: dict[int, float]) -> int | str:
        goal = share * list(curves[variance, "WFS"][seed].values())[-1]
        return next((step for step, accuracy in curve.items() if accuracy >= goal), "")

    return [
        {"variance": variance, "method": method}
        | {seed: first(variance, seed, curve) for seed, curve in by_seed.items()}
        for (variance, method), by_seed in curves.items()
    ]
