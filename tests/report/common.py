"""Run folders as train.py leaves them, made by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

VERSIONS = {"python": "3.11.0", "torch": "2.9.0", "torchvision": None}


def curves(epochs: int = 30, last_nc1: float = 0.02) -> dict[str, np.ndarray]:
    """A few metrics of two splits: nc1 falls evenly on a logarithmic axis, the accuracy is 1 at last."""
    share = np.linspace(0, 1, epochs)
    found = {}
    for split in ("train", "val"):
        found[f"nc/{split}/nc1"] = np.geomspace(1, last_nc1, epochs)
        found[f"nc/{split}/nc1_cdnv"] = np.geomspace(2, last_nc1, epochs)
        found[f"nc/{split}/nc4"] = 0.3 * (1 - share)
        found[f"nc/{split}/wm_cosine"] = 0.5 + 0.41 * share
        found[f"nc/{split}/accuracy"] = np.minimum(1, 0.8 + 0.25 * share)
        found[f"nc/{split}/accuracy_centred_means"] = 0.5 + 0.499 * share
        found[f"{split}/loss"] = np.geomspace(2, 0.01, epochs)
    found["nc/train/tpt"] = (found["nc/train/accuracy"] == 1).astype(float)
    return found


def write_metrics(path: Path, found: dict[str, np.ndarray]) -> None:
    """As Lightning's CSVLogger does it: validation's values in a row of their own before training's."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, ["epoch", "step", *found], restval="")
        writer.writeheader()
        for epoch in range(len(next(iter(found.values())))):
            for of_callbacks in (False, True):
                row = {key: values[epoch] for key, values in found.items() if key.startswith("nc/") == of_callbacks}
                writer.writerow({"epoch": epoch, "step": epoch, **row})


def write_looks(path: Path, classes: int = 4, epochs: tuple[int, ...] = (1, 2, 30), step: int = 1) -> None:
    """Entry c of a vector at epoch e is e + c/1000; the matrix is e/100 off the diagonal."""
    arrays: dict[str, Any] = {}
    at = np.array(epochs)
    for split in ("train", "val"):
        vector = at[:, None] + np.arange(classes) / 1000
        names = ("mu1_per_class", "mu2_per_class", "sigma1_per_class", "sigma2_per_class", "class_mean_norms")
        found = dict.fromkeys(names, vector) | {"wm_cosine_per_class": vector / 40, "explained_variance": vector / 100}
        found["class_mean_cosines"] = np.where(np.eye(classes, dtype=bool), 1, at[:, None, None] / 100)
        for name, values in found.items():
            arrays[f"nc/{split}/{name}"] = values.astype(np.float32)
            arrays[f"nc/{split}/{name}@epochs"] = at
            arrays[f"nc/{split}/{name}@step"] = np.array(step)
    np.savez(path, **arrays)


def make_run(
    folder: Path, overrides: tuple[str, ...] = (), found: dict[str, np.ndarray] | None = None, **config: Any
) -> Path:
    """A finished run of 30 epochs."""
    found = curves() if found is None else found
    (folder / ".hydra").mkdir(parents=True)
    config = {"data": {"name": "digits"}, "model": {"_target_": "models.cnn", "activation": "tanh"}} | config
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))
    write_metrics(folder / "metrics.csv", found)
    metrics = {key: float(values[-1]) for key, values in found.items()}
    summary = {"metrics": metrics, "epochs": 30, "seconds": 75.5, "versions": VERSIONS}
    (folder / "summary.json").write_text(json.dumps(summary))
    write_looks(folder / "looks.npz")
    return folder


def make_failed_run(folder: Path, overrides: tuple[str, ...] = ()) -> Path:
    """A run that left nothing but its configuration."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text("data:\n  name: digits\n")
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))
    return folder


def make_sweep(folder: Path, error: str = "ValueError: no such activation") -> Path:
    """Two activations with two seeds each, and a run that failed."""
    for number, (activation, seed) in enumerate((a, s) for a in ("tanh", "relu") for s in (0, 1)):
        nc1 = (0.02 if activation == "tanh" else 0.1) * (1 + seed)
        make_run(folder / str(number), (f"model.activation={activation}", f"seed={seed}"), curves(last_nc1=nc1))
    make_failed_run(folder / "10", ("model.activation=none", "seed=0"))
    with open(folder / "sweep.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["subfolder", "status", "error"])
        writer.writerows([[str(number), "finished", ""] for number in range(4)] + [["10", "failed", error]])
    return folder
