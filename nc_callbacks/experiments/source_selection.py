"""Does the ranking of sources by centred class means agree with what trained heads reach?"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nc_callbacks.experiments.data import ImageData
from nc_callbacks.experiments.logistic import logistic_accuracy
from nc_callbacks.experiments.models import Enlarge
from nc_callbacks.experiments.transfer import (
    Row,
    features_of,
    print_rows,
    trained_network,
    with_noise,
    write_rows,
)
from nc_callbacks.functional import nearest_mean
from nc_callbacks.statistics import ClassStatistics
from nc_callbacks.transfer import rank_sources

Part = tuple[Tensor, Tensor]

RANKINGS = ("cm_accuracy", "ncm_accuracy", "logistic_1_percent", "minus_nc1")
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
) -> None:
    """Train the sources, score each on each target, and compare the rankings with the accuracy of trained heads.

    ``scores.csv`` has one row per source and target: accuracy of centred means (`rank_sources`, with nc1), of the
    nearest class mean, and of logistic regressions fitted until they converge to 1 % of the target's training data
    (mean over `draws`) and to all of it (``trained_head``). ``kendall.csv`` has Kendall's τ between each score and it.

    Args:
        config: The configuration of `train.py`: model, loss, optimizer, trainer, and where the data lies.
        folder: The run folder.
        sources: ``name``, ``data``, ``activation``, ``epochs`` and ``classes`` (how many of the first classes) of each.
        targets: ``name``, ``data`` and ``variance`` (of the noise) of each.
        image_size: All images are enlarged to this height and width.
        samples: Training images of each data set, drawn at random (all, where there are fewer).
        draws: How often 1 % of the target's data is drawn.

    Raises:
        ValueError: There are fewer than two sources, or no targets.
    """
    from nc_callbacks.figures.transfer import ranking_figure

    if len(sources) < 2 or len(targets) < 1:
        raise ValueError(f"Expected at least 2 sources and 1 target, got {len(sources)} and {len(targets)}.")
    names = {entry["data"] for entry in (*sources, *targets)}
    data = {name: _images(config, name, image_size, samples) for name in sorted(names)}
    noisy = {target["name"]: _with_noise(data[target["data"]], target["variance"], config.seed) for target in targets}
    rows: list[Row] = []
    for source in sources:
        start = time.perf_counter()
        images, labels = data[source["data"]][0]
        chosen = labels < source["classes"]
        network = trained_network(
            config, images[chosen], labels[chosen], source["epochs"], activation=source["activation"]
        )
        seconds = time.perf_counter() - start
        for name, (train, test) in noisy.items():
            features = [(features_of(network, x), y) for x, y in (train, test)]
            scores = score(source["name"], features[0], features[1], draws)
            rows.append({"target": name, "source": source["name"], **scores})
        print(f"{source['name']}: trained in {seconds:.0f} s, scored in {time.perf_counter() - start - seconds:.0f} s")
    taus = rank_correlations(rows)
    folder = Path(folder)
    write_rows(folder / "scores.csv", rows)
    write_rows(folder / "kendall.csv", taus)
    print_rows("Scores", rows)
    print_rows("Kendall's τ with the accuracy of the trained head", taus)
    figure = ranking_figure(rows, "cm_accuracy", "trained_head", "accuracy of centred means (no training)")
    figure.savefig(folder / "source_selection.png", dpi=130)
    print(f"\nRun folder: {folder}")


def score(name: str, train: Part, test: Part, draws: int) -> dict[str, float]:
    """The scores of one source on one target, from its features.

    Args:
        name: Of the source, for the message where it fails.
        train: Training features (n, p) and class indices.
        test: Test features and class indices.
        draws: How often 1 % of the training features is drawn.

    Raises:
        RuntimeError: `rank_sources` could not score it.
    """
    k = int(train[1].max()) + 1
    loaders = [DataLoader(TensorDataset(*part), batch_size=512) for part in (train, test)]
    (ranked,) = rank_sources({name: nn.Identity()}, loaders[0], k, loaders[1])
    if ranked.error:
        raise RuntimeError(f"Source {name!r} could not be scored: {ranked.error}")
    statistics = ClassStatistics(k, covariance="none")
    statistics.update(*train)
    nearest = (nearest_mean(test[0], statistics.compute().means) == test[1]).float().mean()
    generator = torch.Generator().manual_seed(0)
    few = [torch.randperm(len(train[1]), generator=generator)[: max(2, len(train[1]) // 100)] for _ in range(draws)]
    return {
        "cm_accuracy": ranked.cm_accuracy,
        "ncm_accuracy": float(nearest),
        "logistic_1_percent": fmean(logistic_accuracy(train[0][i], train[1][i], test) for i in few),
        "minus_nc1": -ranked.nc1,
        "mu_ratio": ranked.mu_ratio,
        "trained_head": logistic_accuracy(*train, test),
    }


def rank_correlations(rows: Sequence[Row]) -> list[Row]:
    """Kendall's τ-b of each score with the accuracy of the trained head, one row per score, one column per target."""
    from scipy.stats import kendalltau

    by_target: dict[str, list[Row]] = {}
    for row in rows:
        by_target.setdefault(row["target"], []).append(row)
    found: list[Row] = []
    for ranking in RANKINGS:
        taus = {
            target: float(kendalltau([row[ranking] for row in of], [row["trained_head"] for row in of]).statistic)
            for target, of in by_target.items()
        }
        found.append({"ranking": ranking, **taus, "mean": fmean(taus.values())})
    return found


def _images(config: DictConfig, name: str, size: int, samples: int) -> tuple[Part, Part]:
    data = ImageData(name, root=config.data.root, download=config.data.download, seed=config.seed)
    data.setup()
    assert data.train_set is not None
    assert data.val_set is not None
    enlarge = Enlarge(size)
    chosen = torch.randperm(len(data.train_set), generator=torch.Generator().manual_seed(config.seed))[:samples]
    images, labels = data.train_set[chosen]
    test_images, test_labels = data.val_set.tensors
    return (enlarge(images), labels), (enlarge(test_images), test_labels)


def _with_noise(parts: tuple[Part, Part], variance: float, seed: int) -> tuple[Part, Part]:
    generator = torch.Generator().manual_seed(seed)
    train, test = ((with_noise(images, variance, generator), labels) for images, labels in parts)
    return train, test
