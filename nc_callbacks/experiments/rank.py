"""``nc-callbacks rank --backbones A,B,C --data DATA``: prints a ranking and writes it as CSV."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields

import torch

from nc_callbacks.experiments.sources import source, target_loaders
from nc_callbacks.transfer.ranking import rank_sources
from nc_callbacks.transfer.scores import LARGER, SourceScore

HELP = """Rank backbones for a target without training, by the accuracy of whitened class means or another score: one
pass each. A backbone is torchvision:NETWORK or timm:NETWORK (pretrained; torchvision:NETWORK:random and
timm:NETWORK:random for random weights), a folder that a model of transformers was saved to, a run folder of train.py or
a checkpoint in one, or package.module:function that returns a module from images to features."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        Exit status: 1 where no backbone could be ranked.
    """
    parser = argparse.ArgumentParser(prog="nc-callbacks rank", description=HELP)
    parser.add_argument("--backbones", required=True, help="names, separated by commas")
    parser.add_argument("--data", required=True, help="digits, fashion_mnist, … or a folder with a subfolder a class")
    parser.add_argument("--root", default="data", help="where a named data set lies (default: data)")
    parser.add_argument("--by", default="lda_accuracy", choices=LARGER, help="score to rank by (default: lda_accuracy)")
    parser.add_argument("--layers", default="", help="modules whose outputs are ranked too, separated by commas")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--csv", default="ranking.csv", help="file to write (default: ranking.csv)")
    given = parser.parse_args(arguments)
    try:
        loader, test_loader, num_classes = target_loaders(given.data, given.root, given.batch_size)
    except FileNotFoundError as error:
        parser.exit(2, f"{error}\n")
    except ModuleNotFoundError as error:
        parser.exit(2, f"{error}. Install the extra: pip install 'nc-callbacks[experiments]'.\n")
    backbones = {name: source(name, given.device) for name in given.backbones.split(",")}
    layers = [layer for layer in given.layers.split(",") if layer]
    scores = rank_sources(backbones, loader, num_classes, test_loader, by=given.by, layers=layers)
    with open(given.csv, "w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(SourceScore)])
        writer.writeheader()
        writer.writerows(map(asdict, scores))
    print(f"{given.data}: {scores}")
    print(f"Written to {given.csv}")
    return int(all(score.error for score in scores))


if __name__ == "__main__":
    sys.exit(main())
