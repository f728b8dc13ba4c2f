"""Looks through the depth of a network: which layers, what features, one pass, the law of data separation."""

import numpy as np
import pytest
import torch
from torch import nn

import nc_callbacks.functional as F_nc
from nc_callbacks import FeatureSpectrum, NeuralCollapse, WeightMeanAlignment
from nc_callbacks.metrics import LogKey
from nc_callbacks.probe.tap import positions_of
from nc_callbacks.statistics import ClassStatistics
from tests.callbacks.common import Classifier, K, loader, samples, trainer


class Block(nn.Module):
    """Residual."""

    def __init__(self):
        super().__init__()
        self.part = nn.Conv1d(5, 5, 3, padding=1)

    def forward(self, x):
        return x + self.part(x).tanh()


class Deep(Classifier):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv1d(1, 5, 3, padding=1)
        # Channels last before the head; three blocks on maps (n, 5, 6).
        self.blocks = nn.Sequential(Block(), Block(), Block())
        self.head = nn.Linear(30, K)
        self.body = nn.Identity()

    def features(self, x):
        return self.blocks(self.stem(x[:, None])).flatten(1)

    def forward(self, x):
        self.tally.calls += 1
        return self.head(self.features(x))


class Images(Deep):
    """The same on maps (n, 5, 3, 2)."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 5, 1)
        for block in self.blocks:
            block.part = nn.Conv2d(5, 5, 3, padding=1)

    def features(self, x):
        return self.blocks(self.stem(x.view(-1, 1, 3, 2))).flatten(1)


def moments_of(features, targets):
    statistics = ClassStatistics(K)
    statistics.update(features.double(), targets)
    return statistics.compute()


@pytest.mark.parametrize("mode", ["epoch_end", "online"])
@pytest.mark.parametrize("layers", ["blocks", ["blocks.*"]])
def test_blocks_are_averaged_over_positions(layers, mode):
    callback, model = NeuralCollapse(layers=layers, mode=mode), Images()
    optimizer = {"epoch_end": 0.05, "online": 0.0}[mode]
    model.configure_optimizers = lambda: torch.optim.SGD(model.parameters(), optimizer)
    trainer(callback, max_epochs=1).fit(model, loader(shuffle=False))
    assert callback.layers == ("blocks.0", "blocks.1", "blocks.2")
    x, y = samples()
    with torch.no_grad():
        h = model.stem(x.view(-1, 1, 3, 2))
        for place, block in enumerate(model.blocks):
            moments = moments_of(h.mean((2, 3)), y)
            found = callback.latest[f"nc/train/blocks.{place}/nc1"]
            assert found == pytest.approx(float(F_nc.nc1(moments.within, moments.means, precision=2**-23)), rel=1e-4)
            h = block(h)
        # The classifier's own input is not averaged.
        moments = moments_of(h.flatten(1), y)
        expected = F_nc.nc1(moments.within, moments.means, precision=2**-23)
    assert callback.latest["nc/train/nc1"] == pytest.approx(float(expected), rel=1e-4)


def test_one_pass_serves_those_with_blocks_and_those_without():
    model = Images()
    alone = trainer(NeuralCollapse(), max_epochs=1)
    alone.fit(model, loader())
    calls = model.forward_calls
    together = Images()
    callbacks = [NeuralCollapse(layers="blocks"), WeightMeanAlignment(), FeatureSpectrum(layers="blocks")]
    trainer(*callbacks, max_epochs=1).fit(together, loader())
    assert together.forward_calls == calls
    assert "nc/train/blocks.2/spectrum_effective_rank" in callbacks[2].latest


def test_a_layer_averaged_by_one_and_flattened_by_another_is_refused():
    callbacks = [NeuralCollapse(layers="blocks"), FeatureSpectrum(layers=["blocks.1"])]
    with pytest.raises(ValueError, match="watch one layer, one by a pattern"):
        trainer(*callbacks, max_epochs=1).fit(Images(), loader())


def test_log_separation_over_layers_is_a_line():
    callback = NeuralCollapse(layers="blocks")
    trainer(callback, max_epochs=2).fit(Images(), loader())
    keys = [f"nc/train/blocks.{place}/class_separation" for place in range(3)] + ["nc/train/class_separation"]
    y = np.log([callback.latest[key] for key in keys])
    slope, offset = np.polyfit(np.arange(4), y, 1)
    residual = y - slope * np.arange(4) - offset
    assert callback.latest["nc/train/class_separation_slope"] == pytest.approx(slope, rel=1e-6)
    expected = 1 - residual @ residual / ((y - y.mean()) ** 2).sum()
    assert callback.latest["nc/train/class_separation_fit"] == pytest.approx(expected, rel=1e-6)


def test_few_layers_have_no_line():
    callback = NeuralCollapse(layers=["body.4"])
    trainer(callback, max_epochs=1).fit(Classifier(), loader())
    assert not any("slope" in LogKey.parse(key).name for key in callback.latest)


def test_patterns_find_layers_that_are_made_later():
    class Later(Images):
        def __init__(self):
            super().__init__()
            self.made = self.blocks
            del self.blocks

        def configure_model(self):
            self.blocks = self.made

    callback = NeuralCollapse(layers="blocks.*")
    trainer(callback, max_epochs=1).fit(Later(), loader())
    assert callback.layers == ("blocks.0", "blocks.1", "blocks.2")


@pytest.mark.parametrize(
    ("shape", "positions"),
    [
        ((2, 7, 16), [1]),
        ((2, 16, 4, 4), [2, 3]),
        ((2, 4, 4, 16), [1, 2]),
        ((2, 4, 4, 4), [2, 3]),
        ((2, 3, 4, 4, 4), [2, 3, 4]),
    ],
)
def test_positions_of_sequences_and_maps(shape, positions):
    assert positions_of(torch.zeros(shape)) == positions
