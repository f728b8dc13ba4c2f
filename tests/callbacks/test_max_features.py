"""Layers that are projected, or averaged because they are too wide: which numbers are logged there, and how right."""

import logging

import numpy as np
import pytest
import torch
from torch import nn

from nc_callbacks import FeatureSpectrum, NeuralCollapse, WeightMeanAlignment
from nc_callbacks.metrics import METRICS, LogKey
from nc_callbacks.probe.projection import Projection
from tests import reference
from tests.callbacks.common import Classifier, K, loader, samples, trainer

WIDE, M = 3000, 512


class Wide(Classifier):
    """Classifier's input of 8 features, behind a layer of 3,000."""

    def __init__(self, head=8):
        super().__init__()
        self.widen = nn.Sequential(nn.Linear(6, WIDE), nn.Tanh())
        self.narrow = nn.Linear(WIDE, 8) if head == 8 else nn.Identity()
        self.head = nn.Linear(head, K)

    def body_of(self, x):
        return self.narrow(self.widen(x))

    def forward(self, x):
        self.tally.calls += 1
        return self.head(self.body_of(x))


class Maps(Wide):
    """Maps of 2 × 200 × 200 numbers go into `last`."""

    def __init__(self):
        super().__init__()
        self.widen, self.narrow = nn.Linear(6, 2), nn.Identity()
        self.last, self.head = nn.Conv2d(2, 8, 1), nn.Linear(8, K)

    def maps(self, x):
        pattern = torch.linspace(0, 1, 200)
        return self.widen(x)[:, :, None, None] * pattern[:, None] + pattern

    def body_of(self, x):
        return self.last(self.maps(x)).mean((2, 3))


def features_of(model):
    x, y = samples()
    with torch.no_grad():
        return model.eval().widen(x).double(), y


@pytest.mark.filterwarnings("ignore:Left out at layers")
@pytest.mark.parametrize("mode", ["epoch_end", "online"])
def test_what_is_logged_is_near_the_truth_and_what_is_not_kept_is_left_out(mode):
    callbacks = [
        NeuralCollapse(layers=["narrow"], max_features=M, standard_errors=True, lda_accuracy=True, mode=mode),
        WeightMeanAlignment(layers=["narrow"], max_features=M, mode=mode),
        FeatureSpectrum(layers=["narrow"], max_features=M, mode=mode),
    ]
    model = Wide()
    model.configure_optimizers = lambda: torch.optim.SGD(model.parameters(), 0.0)
    trainer(*callbacks).fit(model, loader(shuffle=False))
    latest = {key: value for callback in callbacks for key, value in callback.latest.items()}
    found = {LogKey.parse(key).name: value for key, value in latest.items() if LogKey.parse(key).layer}
    assert found
    assert all(METRICS[name].projected for name in found)
    assert not {"nc1", "class_separation", "lda_accuracy", "sigma1", "spectrum_effective_rank"} & set(found)
    features, targets = features_of(model)
    moments = reference.moments(features.numpy(), targets.numpy(), K)
    centred = reference.centred(moments.means)
    error = (2 / M) ** 0.5
    for name, expected in {
        "nc1_quotient": reference.nc1_quotient(moments.within, moments.means),
        "nc1_cdnv": reference.nc1_cdnv(moments.traces, moments.means),
        "mu1": (moments.means**2).sum(1).mean(),
    }.items():
        assert found[name] == pytest.approx(expected, rel=3 * error), name
    for name, expected in {
        "nc2_equinorm": reference.nc2_equinorm(centred),
        "nc2_equiangularity_signed": reference.nc2_equiangularity(centred, signed=True),
        "nc2_etf": reference.nc2_etf(centred),
    }.items():
        assert found[name] == pytest.approx(expected, abs=3 * error), name
    # Exactly those of the projected features.
    narrow = reference.moments(Projection(WIDE, M)(features.float()).double().numpy(), targets.numpy(), K)
    assert found["nc1_quotient"] == pytest.approx(reference.nc1_quotient(narrow.within, narrow.means), rel=1e-5)
    nearest = reference.nearest_mean(features.numpy(), moments.means)
    assert found["ncc_accuracy"] == pytest.approx(np.mean(nearest == targets.numpy()), abs=0.05)
    # The classifier's own 8 features are as they are.
    assert {"nc/train/nc1", "nc/train/nc3", "nc/train/wm_cosine", "nc/train/spectrum_rankme"} <= set(latest)


def test_a_projection_raises_nc1_of_isotropic_noise_which_is_why_it_is_left_out():
    """tr(Σ_W Σ_B⁺) has the noise within the span of the means alone; a projection brings the rest of it there."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(4, 1000, generator=generator).double()
    matrix = Projection(1000, 100)(torch.eye(1000).double()).T.numpy()
    exact = reference.nc1(np.eye(1000), means.numpy())
    assert reference.nc1(matrix @ matrix.T, means.numpy() @ matrix.T) > 5 * exact


@pytest.mark.filterwarnings("ignore:Left out at layers")
def test_without_what_needs_w_where_the_classifiers_input_is_projected():
    callback, of_w = NeuralCollapse(max_features=M, unbalanced=True), WeightMeanAlignment(max_features=M)
    with pytest.warns(UserWarning, match=r"3000 features of the classifier 'head' are projected to max_features=512"):
        trainer(callback, of_w).fit(Wide(WIDE), loader())
    names = {LogKey.parse(key).name for key in callback.latest | of_w.latest}
    assert {"nc1_quotient", "nc2_etf", "nc4", "ncc_accuracy", "accuracy", "mu1"} <= names
    assert not {name for name in names if "weights" in name or name.startswith(("nc3", "wm_cosine", "mse"))}
    assert not {"nc1", "nc2_seli", "minority_collapse"} & names


def test_what_is_left_out_is_said_once():
    callback = NeuralCollapse(layers=["narrow"], max_features=M)
    with pytest.warns(UserWarning, match="Left out at layers that max_features projects, such as 'narrow'") as warned:
        trainer(callback, max_epochs=2).fit(Wide(), loader())
    said = [str(warning.message) for warning in warned if "Left out" in str(warning.message)]
    assert len(said) == 1
    assert "nc1, class_separation" in said[0]


def test_layers_that_are_narrow_enough_are_as_without():
    values = []
    for limit in (None, 16):
        callback = NeuralCollapse(layers=["body.4"], max_features=limit)
        trainer(callback).fit(Classifier(), loader(shuffle=False))
        values.append(callback.latest)
    numbers = [{key: value for key, value in found.items() if isinstance(value, float)} for found in values]
    assert numbers[0] == numbers[1]


def test_memory_and_time_are_said_before_the_first_look(caplog):
    with caplog.at_level(logging.INFO):
        trainer(NeuralCollapse(layers=["narrow", "widen.0"], max_features=4096)).fit(Wide(), loader())
    [said] = [record.message for record in caplog.records if "further layers" in record.message]
    assert "2 further layers, the widest 'narrow' with 3,000 features. Class statistics take up to" in said
    assert "a batch of 16 rows" in said
    assert "the 5 of an epoch" in said
    caplog.clear()
    with caplog.at_level(logging.INFO):
        trainer(NeuralCollapse()).fit(Wide(), loader())
    assert not any("further layers" in record.message for record in caplog.records)


def test_maps_that_are_too_wide_are_averaged_which_is_said(caplog):
    model, callback = Maps(), NeuralCollapse(layers=["last"])
    model.configure_optimizers = lambda: torch.optim.SGD(model.parameters(), 0.0)
    with caplog.at_level(logging.INFO):
        trainer(callback).fit(model, loader(shuffle=False))
    assert any("maps of 'last' have more than 32,768 numbers and are averaged" in r.message for r in caplog.records)
    x, y = samples()
    with torch.no_grad():
        rows = model.maps(x).mean((2, 3)).double().numpy()
    moments = reference.moments(rows, y.numpy(), K)
    found = callback.latest["nc/train/last/nc1_quotient"]
    assert found == pytest.approx(reference.nc1_quotient(moments.within, moments.means), rel=1e-4)


@pytest.mark.parametrize("limit", [0, 3, 15])
def test_too_few_are_refused(limit):
    with pytest.raises(ValueError, match="max_features must be None or at least 16"):
        NeuralCollapse(max_features=limit)
