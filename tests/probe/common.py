"""A batch, and what the probe makes of a model on it."""

import torch

from nc_callbacks import probe

X, Y = torch.randn(10, 8, generator=torch.Generator().manual_seed(0)), torch.arange(10) % 4


def check(model, x=X, y=Y, head=None, layers=(), forward=None):
    model.eval()
    with probe.undisturbed(model):
        return probe.check_head(model, forward or model, x, y, head, layers)


def read(model, head, x, y, layers=()):
    model.eval()
    with torch.no_grad(), probe.Tap(model, head, layers) as tap:
        model(x)
        return tap.read(y), tap.weight_and_bias()
