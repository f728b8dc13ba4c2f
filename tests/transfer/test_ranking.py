"""Backbones ranked by the accuracy of centred class means."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nc_callbacks import rank_sources
from tests import reference
from tests.callbacks.common import Tally
from tests.transfer.test_head import K, N, P, data, expected_weight

X, Y = data(offset=0.5)
LOADER = DataLoader(TensorDataset(X, Y), batch_size=40, shuffle=True)
X_TEST, Y_TEST = data(seed=1, offset=0.5)
TEST = DataLoader(TensorDataset(X_TEST, Y_TEST), batch_size=64)


class Columns(nn.Module):
    """Only the first columns, so that sources differ."""

    def __init__(self, columns):
        super().__init__()
        self.columns, self.tally = columns, Tally()

    def forward(self, x):
        self.tally.calls += 1
        return x[:, : self.columns]


class Broken(nn.Module):
    def forward(self, x):
        raise RuntimeError("out of order")


def accuracy(train, targets, test, test_targets):
    """Of argmax hᵀμ_c, in float64."""
    logits = test.double().numpy() @ expected_weight(train, targets).T
    return (logits.argmax(1) == test_targets.numpy()).mean()


def test_scores_are_those_of_the_definitions_and_sorted():
    scores = rank_sources({f"{p}": Columns(p) for p in (2, P, 6)}, LOADER, K, TEST)
    assert [score.cm_accuracy for score in scores] == sorted((score.cm_accuracy for score in scores), reverse=True)
    for score in scores:
        p = int(score.name)
        assert score.cm_accuracy == pytest.approx(accuracy(X[:, :p], Y, X_TEST[:, :p], Y_TEST))
        h = X[:, :p].double().numpy()
        moments = reference.moments(h, Y.numpy(), K)
        centred = moments.means - moments.means.mean(0)
        between = centred.T @ centred / K
        assert score.nc1 == pytest.approx(np.trace(moments.within @ np.linalg.pinv(between, rcond=1e-9)) / K, rel=1e-5)
        products = moments.means @ moments.means.T
        mu1 = np.trace(products) / K
        mu2 = (products.sum() - np.trace(products)) / (K * (K - 1))
        assert score.mu_ratio == pytest.approx(mu2 / mu1, rel=1e-5)
        assert score.seconds > 0
        assert not score.error


@pytest.mark.parametrize("ignored", [-100, 255])
def test_ignored_targets_count_nowhere(ignored):
    out = torch.arange(N) % 3 == 0
    loader = DataLoader(TensorDataset(X, Y.where(~out, ignored)), batch_size=40)
    test_out = torch.arange(len(Y_TEST)) % 4 == 0
    test = DataLoader(TensorDataset(X_TEST, Y_TEST.where(~test_out, ignored)), batch_size=64)
    settings = {"ignore_index": ignored}
    (score,) = rank_sources({"a": nn.Identity()}, loader, K, test, **settings)
    assert score.cm_accuracy == pytest.approx(accuracy(X[~out], Y[~out], X_TEST[~test_out], Y_TEST[~test_out]))
    (held_out,) = rank_sources({"a": nn.Identity()}, loader, K, **settings)
    assert not held_out.error
    (refused,) = rank_sources({"a": nn.Identity()}, loader, K, test)
    assert f"{ignored}" in refused.error


def test_one_pass_each_and_a_part_held_out_of_the_means():
    backbone = Columns(P)
    (score,) = rank_sources({"a": backbone}, LOADER, K)
    assert backbone.tally.calls == math.ceil(N / 40)
    # The same samples are drawn for each backbone, a fifth of them.
    generator = torch.Generator().manual_seed(0)
    out = torch.cat([torch.rand(len(part), generator=generator) < 0.2 for part in Y.split(40)])
    assert score.cm_accuracy == pytest.approx(accuracy(X[~out], Y[~out], X[out], Y[out]))
    larger = rank_sources({"a": backbone}, LOADER, K, holdout=0.5)[0]
    assert larger.nc1 != score.nc1


def test_a_backbone_that_fails_is_a_row_and_the_others_go_on():
    def absent():
        raise FileNotFoundError("no such checkpoint")

    backbones = {"broken": Broken(), "absent": absent, "text": lambda: "resnet18", "whole": lambda: Columns(P)}
    scores = rank_sources(backbones, LOADER, K, TEST)
    assert [score.name for score in scores] == ["whole", "broken", "absent", "text"]
    assert not scores[0].error
    assert all(math.isnan(score.cm_accuracy) for score in scores[1:])
    assert scores[1].error == "RuntimeError: out of order"
    assert scores[2].error == "FileNotFoundError: no such checkpoint"
    assert "must be an nn.Module" in scores[3].error


def test_backbones_are_left_as_they_were():
    backbone = nn.Sequential(nn.BatchNorm1d(P), nn.Dropout(0.5)).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    state = torch.get_rng_state()
    first = rank_sources({"a": backbone}, LOADER, K)
    assert first[0].cm_accuracy == rank_sources({"a": backbone}, LOADER, K)[0].cm_accuracy
    assert all(module.training for module in backbone.modules())
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


class TestBadInputs:
    @pytest.mark.parametrize("backbones", [{}, [nn.Identity()]])
    def test_backbones(self, backbones):
        with pytest.raises(ValueError, match="backbones must be a mapping from names to modules, not empty"):
            rank_sources(backbones, LOADER, K)

    def test_loaders_are_tried_before_the_first_backbone(self):
        backbone = Columns(P)
        without_targets = DataLoader(TensorDataset(X), batch_size=10)
        empty = DataLoader(TensorDataset(X[:0], Y[:0]), batch_size=10)
        for loaders in ((without_targets,), (LOADER, without_targets)):
            train, test = (*loaders, None)[:2]
            with pytest.raises(ValueError, match=r"Expected batches that start with \(inputs, targets\)"):
                rank_sources({"a": backbone}, train, K, test)
        with pytest.raises(ValueError, match="The loader is empty"):
            rank_sources({"a": backbone}, empty, K)
        assert backbone.tally.calls == 0

    def test_holdout(self):
        with pytest.raises(ValueError, match=r"holdout must be a share between 0 and 1, got 1.5"):
            rank_sources({"a": nn.Identity()}, LOADER, K, holdout=1.5)
        (score,) = rank_sources({"a": nn.Identity()}, LOADER, K, holdout=1e-9)
        assert "No sample was held out for the test" in score.error
