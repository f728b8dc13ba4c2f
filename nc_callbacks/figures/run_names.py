"""What a run's data, model and classes are called in figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DATA_NAMES = {
    "digits": "digits",
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
}


def data_name(run: Any) -> str:
    """The data set's own name, or that of the folder of images."""
    data = run.config["data"]
    if data["name"] == "image_folder":
        return Path(data["root"]).name
    return DATA_NAMES.get(data["name"], data["name"])


def model_name(run: Any) -> str:
    """``1FC``, ``2FC``, or the model's name in the configuration."""
    name = run.config["model"]["_target_"].rsplit(".", 1)[1]
    return {"conv_1fc": "1FC", "conv_2fc": "2FC"}.get(name, name)


def class_names(run: Any) -> list[str]:
    """Names of the classes in ``data.json`` of the run's folder; none where they have none."""
    try:
        content = json.loads(Path(run.folder, "data.json").read_text(encoding="utf-8"))
        return list(map(str, content["classes"] or ()))
    except (OSError, ValueError, KeyError, TypeError):
        return []
