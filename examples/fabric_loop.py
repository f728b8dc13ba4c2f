"""Neural collapse in a Fabric loop on two processes: `python examples/fabric_loop.py`.

Every rank updates its own statistics; `compute` sums them over ranks. Fabric's sampler repeats samples to even the
ranks out, so the pass that measures goes through a loader of its own, in which each sample is on one rank only.
"""

import torch
from lightning.fabric import Fabric
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import nc_callbacks.functional as F_nc
from nc_callbacks import ClassStatistics, OutputErrors

NUM_CLASSES, EPOCHS = 4, 5


def gaussian_classes(samples: int = 801) -> TensorDataset:
    """Points around four centres."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(NUM_CLASSES, (samples,), generator=generator)
    centres = 2 * torch.randn(NUM_CLASSES, 8, generator=generator)
    return TensorDataset(centres[targets] + torch.randn(samples, 8, generator=generator), targets)


class Classifier(nn.Module):
    """A hidden layer and a classifier; gives features and logits."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 32), nn.Tanh())
        self.head = nn.Linear(32, NUM_CLASSES)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.body(x)
        return features, self.head(features)


def train(fabric: Fabric) -> None:
    fabric.seed_everything(0, verbose=False)
    model = Classifier()
    model, optimizer = fabric.setup(model, torch.optim.Adam(model.parameters(), 0.01))
    data = gaussian_classes()
    loader = fabric.setup_dataloaders(DataLoader(data, batch_size=64, shuffle=True))
    share = Subset(data, range(fabric.global_rank, len(data), fabric.world_size))
    own_loader = fabric.setup_dataloaders(DataLoader(share, batch_size=64), use_distributed_sampler=False)
    statistics = ClassStatistics(NUM_CLASSES).to(fabric.device)
    errors = OutputErrors(NUM_CLASSES, outputs="softmax").to(fabric.device)

    for epoch in range(EPOCHS):
        for x, y in loader:
            optimizer.zero_grad()
            fabric.backward(nn.functional.cross_entropy(model(x)[1], y))
            optimizer.step()

        statistics.reset()
        errors.reset()
        with torch.no_grad():
            for x, y in own_loader:
                features, logits = model(x)
                statistics.update(features, y)
                errors.update(logits, y)
        moments, sqi = statistics.compute(), errors.compute()
        weight = model.head.weight.detach().double()
        fabric.print(
            f"epoch {epoch}: {int(moments.counts.sum())} samples, nc1 {F_nc.nc1(moments.within, moments.means):.4f}, "
            f"nc2_etf {F_nc.nc2_etf(moments.centred_means):.4f}, "
            f"wm_cosine {F_nc.wm_cosine(weight, moments.means).mean():.4f}, sqi_epsilon {sqi['sqi_epsilon']:.4f}"
        )


if __name__ == "__main__":
    Fabric(accelerator="cpu", devices=2, strategy="ddp_spawn").launch(train)
