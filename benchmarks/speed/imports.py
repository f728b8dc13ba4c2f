"""What `import nc_callbacks` takes beside the packages that a user of Lightning imports anyway, by CPU time.

`python benchmarks/run.py --only imports`
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

from speed.measure import Options, Row, scaled

USUAL = 3.0
"""Seconds that those packages take on a machine that does nothing else."""

TIMES = """
import time
start = time.process_time()
import jaxtyping, lightning.pytorch, torch, torchmetrics
others = time.process_time()
from nc_callbacks import FeatureSpectrum, NeuralCollapse, QuasiInterpolation, WeightMeanAlignment
print(others - start, time.process_time() - others)
"""


def rows(options: Options) -> Iterator[Row]:
    # The first time compiles.
    times = [_times() for _ in range(2 if options.quick else 4)][1:]
    others, own = (min(column) for column in zip(*times, strict=True))
    # As much more on a machine that is slower or busy.
    usual = own * min(1, USUAL / others)
    what = f"beyond what they import, where that takes {scaled(USUAL)}"
    detail = f"here {scaled(own)} beside {scaled(others)} for torch, Lightning, torchmetrics and jaxtyping"
    yield Row("import of the four callbacks", what, usual * 1e3, "ms", 100, detail)


def _times() -> list[float]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    run = subprocess.run(
        [sys.executable, "-c", TIMES], capture_output=True, text=True, check=True, env=environment, cwd=os.getcwd()
    )
    return [float(value) for value in run.stdout.split()]
