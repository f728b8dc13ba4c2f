"""Whether the outputs are measured raw or after their softmax is found out from the loss itself."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nc_callbacks import QuasiInterpolation
from nc_callbacks.callbacks.loss_of_outputs import outputs_of_loss, outputs_of_modules
from tests.callbacks.common import Classifier, K, loader, trainer

TARGETS = torch.arange(6) % 3
ONE_HOT = F.one_hot(TARGETS, 3).float()


class Attention(nn.Module):
    """A softmax of its own, far below the outputs."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 3)

    def forward(self, x):
        return self.fc((x @ x.T).softmax(-1) @ x)


LOSSES = {
    "cross_entropy": (lambda f: F.cross_entropy(f, TARGETS), "softmax"),
    "smoothed": (lambda f: F.cross_entropy(f, TARGETS, label_smoothing=0.1), "softmax"),
    "nll": (lambda f: F.nll_loss(f.log_softmax(1), TARGETS), "softmax"),
    "by hand": (lambda f: (f.logsumexp(1) - f.gather(1, TARGETS[:, None]).squeeze(1)).mean(), "softmax"),
    "brier": (lambda f: (f.softmax(1) - ONE_HOT).square().sum(1).mean(), "softmax"),
    "with a penalty": (lambda f: F.cross_entropy(f, TARGETS) + 0.1 * f.pow(2).mean(), "softmax"),
    "mse": (lambda f: F.mse_loss(f, ONE_HOT), "raw"),
    "mse by hand": (lambda f: (f - ONE_HOT).square().mean(), "raw"),
    "huber": (lambda f: F.smooth_l1_loss(f, ONE_HOT), "raw"),
    "binary": (lambda f: F.binary_cross_entropy_with_logits(f, ONE_HOT) - 1, None),
    "of its own": (lambda f: f.abs().mean(), None),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("network", [lambda: nn.Linear(2, 3), Attention])
def test_what_a_loss_takes(name, network):
    loss, expected = LOSSES[name]
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert outputs_of_loss(loss(network()(x))) == expected


def test_what_modules_say():
    assert outputs_of_modules(nn.ModuleList([nn.Linear(2, 3), nn.CrossEntropyLoss()])) == "softmax"
    assert outputs_of_modules(nn.ModuleList([nn.MSELoss()])) == "raw"
    assert outputs_of_modules(nn.ModuleList([nn.MSELoss(), nn.NLLLoss()])) is None
    assert outputs_of_modules(nn.Linear(2, 3)) is None


class Trained(Classifier):
    def __init__(self, loss):
        super().__init__()
        self.loss_of = loss

    def training_step(self, batch, batch_idx):
        return self.loss_of(self(batch[0]), batch[1])


@pytest.mark.parametrize("mode", ["epoch_end", "online"])
def test_in_a_fit(mode):
    for loss, kind in (
        (F.cross_entropy, "softmax"),
        (lambda f, y: F.mse_loss(f, F.one_hot(y, K).float()), "raw"),
    ):
        found, given = QuasiInterpolation(mode=mode), QuasiInterpolation(outputs=kind, mode=mode)
        for callback in (found, given):
            torch.manual_seed(0)
            trainer(callback).fit(Trained(loss), loader(shuffle=False))
        assert found.kind == kind
        assert found.latest.keys() == given.latest.keys()
        assert found.latest["nc/train/sqi_epsilon_std"] == given.latest["nc/train/sqi_epsilon_std"]


def test_a_loss_that_says_nothing_is_asked_for():
    callback = QuasiInterpolation()
    with pytest.warns(UserWarning, match=r'could not find out from the loss.*pass outputs="raw"'):
        trainer(callback, max_epochs=2).fit(Trained(lambda f, y: f.abs().mean()), loader())
    assert callback.history == []
