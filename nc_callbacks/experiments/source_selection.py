"""Do rankings of sources without training agree with what trained heads reach?"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nc_callbacks.experiments.data import ImageData
from nc_callbacks.experiments.logistic import logistic_accuracy
from nc_callbacks.experiments.models import Enlarge, Network
from nc_callbacks.experiments.rivals import leep, nce, neighbour_accuracy
from nc_callbacks.experiments.transfer import (
    Row,
    features_of,
    print_rows,
    trained_network,
    with_noise,
    write_rows,
)
from nc_callbacks.transfer import rank_sources

Part = tuple[Tensor, Tensor]

RANKINGS = (
    "lda_accuracy",
    "logme",
    "h_score_regularised",
    "h_score",
    "cm_accuracy",
    "ncm_accuracy",
    "minus_nc1",
    "knn_accuracy",
    "leep",
    "nce",
    "logistic_1_percent",
)
"""Scores by which sources are ranked, the larger the better; the truth is ``trained_head``."""


def run(
    config: DictConfig,
    folder: str | Path,
    *,
    sources: Sequence[Mapping[str, Any]],
    targets: Sequence[Mapping[str, Any]],
    image_size: int,
    samples: int,
    draws: int,
    seeds: int = 1,
    strengths: Sequence[float] = (1.0,),
) -> None:
    """Train the sources, score each on each target, and compare the rankings with the accuracy of trained heads.

    ``scores.csv`` has one row per seed, source and target: the scores of `rank_sources` (``ncm_accuracy`` is its
    nearest class mean); rivals that need all features or the source's classifier, five nearest neighbours, LEEP, NCE
    and a logistic regression on 1 % of the target's training data (mean over `draws`); and the accuracy of one fitted
    to all of it until it converges (``trained_head``). ``kendall.csv`` has, for each score, Kendall's τ with it (mean
    over seeds, by target), their mean with its standard error over seeds, the mean of the weighted τ, and the regret:
    by how many points the source ranked first is worse than the best.

    Args:
        config: The configuration of `train.py`: model, loss, optimizer, trainer, and where the data lies.
        folder: The run folder.
        sources: ``name``, ``data``, ``activation``, ``epochs``, ``classes`` (how many of the first classes) and, where
            there are any, ``wrong`` (the share of labels drawn at random) of each.
        targets: ``name``, ``data`` and ``variance`` (of the noise) of each.
        image_size: All images are enlarged to this height and width.
        samples: Training images of each data set, drawn at random (all, where there are fewer).
        draws: How often 1 % of the target's data is drawn.
        seeds: How often all is drawn and trained anew: samples, noise, weights.
        strengths: Values of C of the trained head, of which held-out samples choose; see
            `nc_callbacks.experiments.logistic`.

    Raises:
        ValueError: There are fewer than two sources, or no targets.
    """
    from nc_callbacks.figures.transfer import ranking_figure

    if len(sources) < 2 or len(targets) < 1:
        raise ValueError(f"Expected at least 2 sources and 1 target, got {len(sources)} and {len(targets)}.")
    names = sorted({entry["data"] for entry in (*sources, *targets)})
    rows: list[Row] = []
    for seed in range(config.seed, config.seed + seeds):
        data = {name: _images(config, name, image_size, samples, seed) for name in names}
        noisy = {target["name"]: _with_noise(data[target["data"]], target["variance"], seed) for target in targets}
        for source in sources:
            torch.manual_seed(seed)
            start = time.perf_counter()
            network = _trained(config, source, data[source["data"]][0])
            seconds = time.perf_counter() - start
            for name, (train, test) in noisy.items():
                features = [(features_of(network, x), y) for x, y in (train, test)]
                scores = score(source["name"], features[0], features[1], draws, strengths)
                with torch.no_grad():
                    outputs = network.classifier.cpu()(features[0][0])
                scores |= {"leep": leep(outputs, train[1]), "nce": nce(outputs, train[1])}
                rows.append({"seed": seed, "target": name, "source": source["name"], **scores})
            spent = time.perf_counter() - start - seconds
            print(f"seed {seed}, {source['name']}: trained in {seconds:.0f} s, scored in {spent:.0f} s")
    taus = rank_correlations(rows)
    folder = Path(folder)
    write_rows(folder / "scores.csv", rows)
    write_rows(folder / "kendall.csv", taus)
    print_rows("Scores", rows)
    print_rows("Kendall's τ with the accuracy of the trained head", taus)
    last = [row for row in rows if row["seed"] == rows[-1]["seed"]]
    figure = ranking_figure(last, "lda_accuracy", "trained_head", "accuracy of whitened means (no training)")
    figure.savefig(folder / "source_selection.png", dpi=130)
    print(f"\nRun folder: {folder}")


def score(name: str, train: Part, test: Part, draws: int, strengths: Sequence[float] = (1.0,)) -> dict[str, float]:
    """The scores of one source on one target, from its features.

    Args:
        name: Of the source, for the message where it fails.
        train: Training features (n, p) and class indices.
        test: Test features and class indices.
        draws: How often 1 % of the training features is drawn.
        strengths: Values of C of the trained head.

    Raises:
        RuntimeError: `rank_sources` could not score it.
    """
    k = int(train[1].max()) + 1
    loaders = [DataLoader(TensorDataset(*part), batch_size=512) for part in (train, test)]
    (ranked,) = rank_sources({name: nn.Identity()}, loaders[0], k, loaders[1])
    if ranked.error:
        raise RuntimeError(f"Source {name!r} could not be scored: {ranked.error}")
    generator = torch.Generator().manual_seed(0)
    few = [torch.randperm(len(train[1]), generator=generator)[: max(2, len(train[1]) // 100)] for _ in range(draws)]
    return {
        "lda_accuracy": ranked.lda_accuracy,
        "logme": ranked.logme,
        "h_score": ranked.h_score,
        "h_score_regularised": ranked.h_score_regularised,
        "cm_accuracy": ranked.cm_accuracy,
        "ncm_accuracy": ranked.ncc_accuracy,
        "knn_accuracy": neighbour_accuracy(train, test),
        "logistic_1_percent": fmean(logistic_accuracy(train[0][i], train[1][i], test) for i in few),
        "minus_nc1": -ranked.nc1,
        "mu_ratio": ranked.mu_ratio,
        "seconds": ranked.seconds,
        "trained_head": logistic_accuracy(*train, test, strengths),
    }


def rank_correlations(rows: Sequence[Row]) -> list[Row]:
    """Agreement of each score with the accuracy of the trained head, a row per score; see `run`."""
    from scipy.stats import kendalltau, weightedtau

    groups: dict[tuple[int, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.get("seed", 0), row["target"]), []).append(row)
    targets = list(dict.fromkeys(target for _, target in groups))
    found: list[Row] = []
    for ranking in RANKINGS:
        tau, weighted, regret = {}, [], []
        for group, of in groups.items():
            values, truth = [row[ranking] for row in of], [row["trained_head"] for row in of]
            tau[group] = float(kendalltau(values, truth).statistic)
            weighted.append(float(weightedtau(values, truth).statistic))
            regret.append(100 * (max(truth) - truth[values.index(max(values))]))
        by_seed = [fmean(v for (s, _), v in tau.items() if s == seed) for seed in dict.fromkeys(s for s, _ in tau)]
        error = stdev(by_seed) / len(by_seed) ** 0.5 if len(by_seed) > 1 else math.nan
        by_target = {target: fmean(v for (_, t), v in tau.items() if t == target) for target in targets}
        means = {"mean": fmean(tau.values()), "error": error, "weighted": fmean(weighted), "regret": fmean(regret)}
        found.append({"ranking": ranking, **by_target, **means})
    return found


def _trained(config: DictConfig, source: Mapping[str, Any], train: Part) -> Network:
    images, labels = train
    chosen = labels < source["classes"]
    images, labels = images[chosen], labels[chosen]
    if wrong := source.get("wrong", 0):
        drawn = torch.rand(len(labels)) < wrong
        labels = labels.where(~drawn, torch.randint(source["classes"], labels.shape))
    return trained_network(config, images, labels, source["epochs"], activation=source["activation"])


def _images(config: DictConfig, name: str, size: int, samples: int, seed: int) -> tuple[Part, Part]:
    data = ImageData(name, root=config.data.root, download=config.data.download, seed=config.seed)
    data.setup()
    assert data.train_set is not None
    assert data.val_set is not None
    enlarge = Enlarge(size)
    chosen = torch.randperm(len(data.train_set), generator=torch.Generator().manual_seed(seed))[:samples]
    images, labels = data.train_set[chosen]
    test_images, test_labels = data.val_set.tensors
    return (enlarge(images), labels), (enlarge(test_images), test_labels)


def _with_noise(parts: tuple[Part, Part], variance: float, seed: int) -> tuple[Part, Part]:
    generator = torch.Generator().manual_seed(seed)
    train, test = ((with_noise(images, variance, generator), labels) for images, labels in parts)
    return train, test
