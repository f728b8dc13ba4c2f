"""What a GPU is asked for: an update beside a product in float32, and a look in bfloat16 beside an inference pass.

`python benchmarks/run.py --only device --device cuda` (some 30 s). Where there is no such device, the rows run on the
CPU, small.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from speed.looks import first, large_images, look_and_pass, ratio_row
from speed.measure import Options, Row, batch, interleaved
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
        what = f"{network}, {samples:,} × 28 × 28"
        yield ratio_row("look in bf16, all four / inference pass", what, found["look"], found["pass"], 1.05)
    if options.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(options.device) / 2**20
        yield Row("largest memory of the rows above", "", peak, "MiB", None)
