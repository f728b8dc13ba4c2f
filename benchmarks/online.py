"""How far mode="online" is from the exact numbers, epoch by epoch: a figure and a table.

`python benchmarks/online.py --figure docs/images/online.png`, and with Fashion-MNIST beside digits
`python benchmarks/online.py --fashion-mnist DIR --figure docs/images/online.png`.
"""

import argparse
import warnings
from functools import partial
from pathlib import Path

import lightning as L
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from speed.steps import announced

from nc_callbacks import NeuralCollapse, WeightMeanAlignment
from nc_callbacks.experiments.data import ImageData
from nc_callbacks.experiments.models import cnn
from nc_callbacks.experiments.module import ImageClassifier

METRICS = {"nc1": "NC1", "nc2_etf": "NC2: distance to the ETF", "nc4": "NC4", "wm_cosine": "W–M̄ cosine"}


def histories(data: ImageData, epochs: int) -> dict[str, list[dict]]:
    """Train a CNN (tanh, p = 512) and watch it both ways."""
    L.seed_everything(0, verbose=False)
    data.setup()
    network = cnn(image_shape=data.image_shape, num_classes=data.num_classes)
    model = ImageClassifier(
        network,
        loss=torch.nn.CrossEntropyLoss(),
        optimizer=partial(torch.optim.Adam, lr=0.001),
        scheduler=partial(torch.optim.lr_scheduler.MultiStepLR, milestones=[]),
    )
    watching = {
        mode: [NeuralCollapse(mode=mode, prefix=mode), WeightMeanAlignment(mode=mode, prefix=mode)]
        for mode in ("epoch_end", "online")
    }
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[callback for pair in watching.values() for callback in pair],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data.train_dataloader())
    return {
        mode: [a | b for a, b in zip(pair[0].history, pair[1].history, strict=True)] for mode, pair in watching.items()
    }


def draw(row: list[Axes], title: str, found: dict[str, list[dict]]) -> None:
    for axes, (name, label) in zip(row, METRICS.items(), strict=True):
        for mode, style in (("epoch_end", "-"), ("online", "--")):
            values = [record[f"{mode}/train/{name}"] for record in found[mode]]
            axes.plot(range(1, len(values) + 1), values, style, color="black" if mode == "epoch_end" else "#d55e00")
        axes.set_title(f"{title}: {label}", fontsize=9)
        axes.set_xlabel("epoch")
        if name == "nc1":
            axes.set_yscale("log")
    row[0].legend(["epoch_end (exact)", "online"], frameon=False, fontsize=8)


def main() -> None:
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fashion-mnist", type=Path, help="folder with the four IDX files")
    parser.add_argument("--epochs", type=int, default=40, help="on digits")
    parser.add_argument("--fashion-epochs", type=int, default=8)
    parser.add_argument("--figure", type=Path, required=True)
    arguments = parser.parse_args()
    sets = {"digits": (ImageData("digits"), arguments.epochs)}
    if arguments.fashion_mnist is not None:
        fashion = ImageData("fashion_mnist", root=arguments.fashion_mnist, download=False)
        sets["Fashion-MNIST"] = (fashion, arguments.fashion_epochs)
    figure = Figure(figsize=(12, 2.9 * len(sets)), layout="constrained")
    rows = figure.subplots(len(sets), len(METRICS), squeeze=False)
    settings = zip(rows, sets.items(), strict=True)
    for row, (title, (data, epochs)) in announced(settings, "a few minutes a data set"):
        found = histories(data, epochs)
        draw(list(row), title, found)
        print(f"{title}\nepoch  " + "  ".join(f"{name:>20}" for name in METRICS) + "   (exact, online)")
        for epoch in sorted({0, epochs // 4, epochs // 2, epochs - 1}):
            cells = []
            for name in METRICS:
                exact, online = (found[mode][epoch][f"{mode}/train/{name}"] for mode in ("epoch_end", "online"))
                cells.append(f"{exact:.4f}, {online:.4f}".rjust(20))
            print(f"{epoch + 1:5}  " + "  ".join(cells), flush=True)
    figure.savefig(arguments.figure, dpi=110)


if __name__ == "__main__":
    main()
