"""Neural collapse in a plain PyTorch loop: `python examples/plain_pytorch.py`.

The statistics are torchmetrics: `update` with each batch, `compute` at the end, `reset` before the next epoch. They see
every batch of an extra pass, with the weights standing still, so the numbers are exact.
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import nc_callbacks.functional as F_nc
from nc_callbacks import ClassStatistics, OutputErrors

NUM_CLASSES, EPOCHS = 4, 5


def gaussian_classes(samples: int = 800) -> TensorDataset:
    """Points around four centres."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(NUM_CLASSES, (samples,), generator=generator)
    centres = 2 * torch.randn(NUM_CLASSES, 8, generator=generator)
    return TensorDataset(centres[targets] + torch.randn(samples, 8, generator=generator), targets)


def main() -> None:
    torch.manual_seed(0)
    loader = DataLoader(gaussian_classes(), batch_size=64, shuffle=True)
    body, head = nn.Sequential(nn.Linear(8, 32), nn.Tanh()), nn.Linear(32, NUM_CLASSES)
    optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], 0.01)
    statistics, errors = ClassStatistics(NUM_CLASSES), OutputErrors(NUM_CLASSES, outputs="softmax")

    for epoch in range(EPOCHS):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(head(body(x)), y).backward()
            optimizer.step()

        statistics.reset()
        errors.reset()
        with torch.no_grad():
            for x, y in loader:
                features = body(x)
                statistics.update(features, y)
                errors.update(head(features), y)
        moments = statistics.compute()
        weight = head.weight.detach().double()
        print(
            f"epoch {epoch}: nc1 {F_nc.nc1(moments.within, moments.means):.4f}, "
            f"nc2_etf {F_nc.nc2_etf(moments.centred_means):.4f}, "
            f"wm_cosine {F_nc.wm_cosine(weight, moments.means).mean():.4f}, "
            f"sqi_epsilon {errors.compute()['sqi_epsilon']:.4f}"
        )


if __name__ == "__main__":
    main()
