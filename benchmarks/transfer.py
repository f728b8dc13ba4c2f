"""What `CentredMeanHead.from_loader` costs beside one pass over the loader, and how exact its weight is.

50,000 features of 512 numbers in 100 classes, float32, batches of 256. A pass only takes the batches; both are timed in
turns, and the least of seven counts. The truth is M̄ computed in float64 from the whole set. Run:
python benchmarks/transfer.py
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nc_callbacks import CentredMeanHead

N, P, K, BATCH, TURNS = 50_000, 512, 100, 256, 7


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def truth(x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    """M/‖M‖₂ from its definition in float64."""
    h, targets = x.double().numpy(), y.numpy()
    means = np.stack([h[targets == c].mean(0) for c in range(K)])
    centred = means - means.mean(0)
    return centred / np.linalg.norm(centred, 2)


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(K, (N,), generator=generator)
    x = torch.randn(K, P, generator=generator)[y] + torch.randn(N, P, generator=generator) + 10
    loader = DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True)
    backbone = nn.Identity()

    def one_pass() -> None:
        for _ in loader:
            pass

    passes = {
        "one pass over the loader": one_pass,
        "from_loader": lambda: CentredMeanHead.from_loader(backbone, loader, K),
        'from_loader, scale="fit"': lambda: CentredMeanHead.from_loader(backbone, loader, K, scale="fit"),
    }
    times = {name: min(turn) for name, turn in zip(passes, zip(*_turns(passes), strict=True), strict=True)}
    for name, value in times.items():
        print(f"{name:26} {value:6.3f} s  {value / times['one pass over the loader']:5.2f}")
    weight = CentredMeanHead.from_loader(backbone, loader, K).weight.numpy()
    exact = truth(x, y)
    print(f"largest error of the weight, relative to its largest entry: {abs(weight - exact).max() / exact.max():.1e}")


def _turns(passes: dict[str, Callable[[], object]]) -> list[list[float]]:
    return [[seconds(function) for function in passes.values()] for _ in range(TURNS)]


if __name__ == "__main__":
    main()
