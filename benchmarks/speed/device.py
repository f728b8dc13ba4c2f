"""What a GPU is asked for: an update beside a product in float32, and a look in bfloat16 beside an inference pass.

`python benchmarks/run.py --only device --device cuda` (some 30 s). Where there is no such device, the rows run on the
CPU, small.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

import torch

from nc_callbacks import ClassStatistics, OutputErrors
from speed.fits import Images, first, large_images, loader_of
from speed.looks import look_and_pass, ratio_row
from speed.measure import Options, Row, batch, interleaved, seconds
from speed.metrics import all_metrics
from speed.updates import product, updating

SIZES = ((512, 10, 4_096), (512, 1_000, 4_096), (2_048, 100, 4_096), (2_048, 1_000, 8_192))


def rows(options: Options) -> Iterator[Row]:
    small = options.quick or options.device.type == "cpu"
    for p, k, n in SIZES[:1] if small else SIZES:
        x, y = batch(n, p, k, options.device)
        pair = interleaved(updating(k, x, y, "pooled"), product(x), options)
        yield Row("update / float32 XᵀX", f"p = {p:,}, k = {k:,}, n = {n:,}", pair.ratio, "×", 1.3, str(pair))
    # A CPU's products in bfloat16 are slow.
    samples = 32 if small else 20_480
    for network in ("cnn",) if small else ("cnn", "resnet18"):
        images = first(large_images(options.fashion_mnist), samples)
        found = look_and_pass(network, images, options, "bf16-mixed", min(samples, 512))
        what = f"{network}, {samples:,} × 28 × 28, k = 10, p = 512"
        yield ratio_row("look in bf16, all four / inference pass", what, found["look"], found["pass"], 1.05)
    yield from _parts_of_a_look(options, first(large_images(options.fashion_mnist), samples), min(samples, 512))
    if options.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(options.device) / 2**20
        yield Row("largest memory of the rows above", "", peak, "MiB", None)


def _parts_of_a_look(options: Options, images: Images, size: int) -> Iterator[Row]:
    """What a look does beside running the model, each part by itself."""
    device, k, p, n = options.device, 10, 512, len(images[1])
    x, y = batch(n, p, k, device)
    outputs = x[:, :k]

    def read() -> None:
        for some, labels in loader_of(images, size):
            some.to(device), labels.to(device)

    def gather() -> None:
        statistics, errors = ClassStatistics(k).to(device), OutputErrors(k).to(device)
        for rows, some, labels in zip(x.split(4_096), outputs.split(4_096), y.split(4_096), strict=True):
            statistics.update(rows, labels)
            errors.update(some, labels)
        statistics.settle()

    parts = {
        "reading the shuffled loader": read,
        "class statistics and output errors": gather,
        "metrics, on the device": all_metrics(k, p, device),
        "metrics, on the host": all_metrics(k, p, torch.device("cpu")),
    }
    for name, part in parts.items():
        part()
        taken = 1e3 * median(seconds(part, device) for _ in range(5))
        yield Row(f"of a look: {name}", f"n = {n:,}, k = {k}, p = {p}", taken, "ms", None)
