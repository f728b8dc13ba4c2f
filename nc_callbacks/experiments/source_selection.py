"""Do rankings of sources without training agree with what trained heads reach?"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nc_callbacks.experiments.data import ImageData
from nc_callbacks.experiments.logistic import logistic_accuracy
from nc_callbacks.experiments.models import Enlarge, Network
from nc_callbacks.experiments.rankings import write_tables
from nc_callbacks.experiments.rivals import leep, nce, neighbour_accuracy
from nc_callbacks.experiments.transfer import (
    Row,
    features_of,
    further_trained,
    outputs_of,
    print_rows,
    trained_network,
    with_noise,
    write_rows,
)
from nc_callbacks.transfer import rank_sources

Part = tuple[Tensor, Tensor]


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
    fine_tuned: Sequence[str] = (),
    fine_tuned_epochs: int = 20,
) -> None:
    """Train the sources, score each on each target, and compare the rankings with the accuracy of trained heads.

    ``scores.csv``, written source by source, has one row per seed, source and target: the scores of `rank_sources`
    (``ncm_accuracy`` is its nearest class mean); rivals that need all features or the source's classifier, five nearest
    neighbours, LEEP, NCE and a logistic regression on 1 % of the target's training data (mean over `draws`); the
    accuracy of one fitted to all of it until it converges (``trained_head``); for the sources named in `fine_tuned`
    that of the whole network trained further with a new classifier; and the seconds that each takes. Features,
    neighbours, trained head and fine-tuning run on the trainer's device, all else on the CPU. ``kendall.csv``
    (``kendall_fine_tuned.csv``) has the agreement of each score with the trained head (the fine-tuned network); see
    `nc_callbacks.experiments.rankings`, which also puts together the runs of several seeds.

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
        fine_tuned: Names of sources that are fine-tuned too.
        fine_tuned_epochs: How long, with the configured optimiser at a tenth of its learning rate.

    Raises:
        ValueError: There are fewer than two sources, no targets, or names in `fine_tuned` that no source has.
    """
    if len(sources) < 2 or len(targets) < 1:
        raise ValueError(f"Expected at least 2 sources and 1 target, got {len(sources)} and {len(targets)}.")
    if unknown := set(fine_tuned) - {source["name"] for source in sources}:
        raise ValueError(f"Expected names of sources in fine_tuned, got {', '.join(sorted(unknown))}.")
    names = sorted({entry["data"] for entry in (*sources, *targets)})
    folder, rows = Path(folder), list[Row]()
    for seed in range(config.seed, config.seed + seeds):
        data = {name: _images(config, name, image_size, samples, seed) for name in names}
        noisy = {target["name"]: _with_noise(data[target["data"]], target["variance"], seed) for target in targets}
        for source in sources:
            torch.manual_seed(seed)
            start = time.perf_counter()
            network = _trained(config, source, data[source["data"]][0])
            seconds = time.perf_counter() - start
            for name, (train, test) in noisy.items():
                row = {
                    "seed": seed,
                    "target": name,
                    "source": source["name"],
                    **_scores(network, source["name"], (train, test), draws, strengths),
                }
                row |= {"fine_tuned": math.nan, "seconds_fine_tuned": math.nan}
                if source["name"] in fine_tuned:
                    began = time.perf_counter()
                    row["fine_tuned"] = fine_tuned_accuracy(config, network, train, test, fine_tuned_epochs)
                    row["seconds_fine_tuned"] = time.perf_counter() - began
                rows.append(row)
            write_rows(folder / "scores.csv", rows)
            spent = time.perf_counter() - start - seconds
            print(f"seed {seed}, {source['name']}: trained in {seconds:.0f} s, scored in {spent:.0f} s", flush=True)
    print_rows("Scores", rows)
    write_tables(rows, folder)
    print(f"\nRun folder: {folder}")


def fine_tuned_accuracy(config: DictConfig, network: Network, train: Part, test: Part, epochs: int) -> float:
    """Test accuracy of a copy of the network, all of it trained on with a new classifier on the target's images.

    The optimiser is the configured one at a tenth of its learning rate.
    """
    own = copy.deepcopy(network)
    size = features_of(own, train[0][:1]).shape[1]
    own.classifier = nn.Sequential(nn.Flatten(), nn.Linear(size, int(train[1].max()) + 1))
    config = copy.deepcopy(config)
    config.optimizer.lr = config.optimizer.lr / 10
    further_trained(config, own, *train, epochs)
    return float((outputs_of(own, test[0]).argmax(1) == test[1]).float().mean())


def _scores(
    network: Network, name: str, parts: tuple[Part, Part], draws: int, strengths: Sequence[float]
) -> dict[str, float]:
    """`score` and the scores by the source's own outputs, with the seconds of the features."""
    start = time.perf_counter()
    train, test = ((features_of(network, x), y) for x, y in parts)
    seconds = time.perf_counter() - start
    scores = score(name, train, test, draws, strengths, next(network.parameters()).device) | {
        "seconds_features": seconds
    }
    start = time.perf_counter()
    outputs = outputs_of(network, parts[0][0])
    scores |= {"leep": leep(outputs, train[1]), "nce": nce(outputs, train[1])}
    return scores | {"seconds_leep": time.perf_counter() - start}


def score(
    name: str,
    train: Part,
    test: Part,
    draws: int,
    strengths: Sequence[float] = (1.0,),
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """The scores of one source on one target, from its features.

    Args:
        name: Of the source, for the message where it fails.
        train: Training features (n, p) and class indices.
        test: Test features and class indices.
        draws: How often 1 % of the training features is drawn.
        strengths: Values of C of the trained head.
        device: Where neighbours are sought and the trained head is fitted.

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
    rivals: dict[str, Callable[[], float]] = {
        "knn": lambda: neighbour_accuracy(_on(device, train), _on(device, test)),
        "1_percent": lambda: fmean(logistic_accuracy(train[0][i], train[1][i], test) for i in few),
        "trained_head": lambda: logistic_accuracy(*train, test, strengths, device),
    }
    values, seconds = {}, {"seconds": ranked.seconds}
    for rival, compute in rivals.items():
        start = time.perf_counter()
        values[rival] = compute()
        seconds[f"seconds_{rival}"] = time.perf_counter() - start
    return {
        "lda_accuracy": ranked.lda_accuracy,
        "logme": ranked.logme,
        "h_score": ranked.h_score,
        "h_score_regularised": ranked.h_score_regularised,
        "cm_accuracy": ranked.cm_accuracy,
        "ncm_accuracy": ranked.ncc_accuracy,
        "knn_accuracy": values["knn"],
        "logistic_1_percent": values["1_percent"],
        "minus_nc1": -ranked.nc1,
        "mu_ratio": ranked.mu_ratio,
        "trained_head": values["trained_head"],
        **seconds,
    }


def _on(device: torch.device | str, part: Part) -> Part:
    return part[0].to(device), part[1].to(device)


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
