"""What `CentredMeanHead.from_loader` costs beside one pass over the loader, and how exact its weight is.

50,000 features of 512 numbers in 100 classes, float32, batches of 256, in a TensorDataset and in a dataset that hands
out rows. A pass only takes the batches; all are timed in turns, and the least of seven counts. The truth is M̄ computed
in float64 from the whole set. Run: python benchmarks/transfer.py
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from speed.steps import announced
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from nc_callbacks import CentredMeanHead

N, P, K, BATCH, TURNS = 50_000, 512, 100, 256, 7


class Rows(Dataset):
    """A dataset as most are written."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[index], self.y[index]


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
    for name, dataset in {"TensorDataset": TensorDataset(x, y), "rows": Rows(x, y)}.items():
        loader = DataLoader(dataset, batch_size=BATCH, shuffle=True)
        passes = {
            "one pass over the loader": lambda loader=loader: sum(1 for _ in loader),
            "from_loader": lambda loader=loader: CentredMeanHead.from_loader(nn.Identity(), loader, K),
            'from_loader, scale="fit"': lambda loader=loader: CentredMeanHead.from_loader(
                nn.Identity(), loader, K, scale="fit"
            ),
        }
        turns = [[seconds(function) for function in passes.values()] for _ in announced(range(TURNS), "seconds each")]
        least = [min(times) for times in zip(*turns, strict=True)]
        for label, value in zip(passes, least, strict=True):
            print(f"{name:13} {label:24} {value:6.3f} s  {value / least[0]:5.2f}")
    weight = CentredMeanHead.from_loader(nn.Identity(), loader, K).weight.numpy()
    exact = truth(x, y)
    print(f"largest error of the weight, relative to its largest entry: {abs(weight - exact).max() / exact.max():.1e}")


if __name__ == "__main__":
    main()
