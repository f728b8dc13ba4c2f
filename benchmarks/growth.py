"""How time and memory of a look's statistics grow with n, k and p, over a decade each and more.

`python benchmarks/growth.py --figure docs/images/growth.png` prints the table and draws the figure. Update: per sample,
pooled, batches of 512; compute: moments and NC1–NC3; memory: the states.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median

import torch
from matplotlib.figure import Figure
from speed.measure import batch
from speed.steps import announced

from nc_callbacks import ClassStatistics, NeuralCollapse
from nc_callbacks.engine.observation import ClassifierObservation, Observation

START = {"n": 8_000, "k": 100, "p": 256}
DECADES = {"n": (4_000, 12_000, 40_000), "k": (100, 300, 1_000, 3_000), "p": (128, 256, 512, 1_280)}
NAMES = {"update": "update of n samples (s)", "compute": "compute of NC1–NC3 (s)", "memory": "states (MiB)"}


def measured(n: int, k: int, p: int) -> dict[str, float]:
    """Medians of three passes."""
    x, y = batch(512, p, k)
    times = []
    for _ in range(3):
        statistics = ClassStatistics(k)
        start = time.perf_counter()
        for first in range(0, n, 512):
            size = min(512, n - first)
            statistics.update(x[:size], (y[:size] + first) % k)
        statistics.settle()
        middle = time.perf_counter()
        moments = statistics.compute().observed()
        classifier = ClassifierObservation(torch.eye(len(moments.means), p) + 1, None, 1.0, 0.0, 1.0)
        NeuralCollapse().measure(Observation("train", "features", moments, 1.0, classifier))
        times.append((middle - start, time.perf_counter() - middle))
    update, compute = (median(column) for column in zip(*times, strict=True))
    states = sum(state.nbytes for state in statistics.metric_state.values() if isinstance(state, torch.Tensor))
    return {"update": update, "compute": compute, "memory": states / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", type=Path, required=True)
    arguments = parser.parse_args()
    measured(**START)
    figure = Figure(figsize=(10, 3), layout="constrained")
    colours = dict(zip(NAMES, ("black", "#d55e00", "#0072b2"), strict=True))
    print("| " + " | ".join(["n", "k", "p", *NAMES.values()]) + " |\n|" + " --- |" * 6)
    panels = zip(figure.subplots(1, 3), DECADES.items(), strict=True)
    for axes, (letter, sizes) in announced(panels, "a minute or two"):
        found = {size: measured(**(START | {letter: size})) for size in sizes}
        for size, values in found.items():
            cells = [f"{value:,}" for value in (START | {letter: size}).values()]
            print("| " + " | ".join(cells + [f"{values[name]:.3g}" for name in NAMES]) + " |", flush=True)
        for name, colour in colours.items():
            axes.loglog(sizes, [values[name] for values in found.values()], "o-", color=colour, label=NAMES[name])
        fixed = ", ".join(f"{other} = {value:,}" for other, value in START.items() if other != letter)
        axes.set_title(f"over {letter} ({fixed})", fontsize=9)
        axes.set_xlabel(letter)
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.savefig(arguments.figure, dpi=110)


if __name__ == "__main__":
    main()
