"""Backbones ranked for a target: all scores from one pass, against their definitions."""

import math
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nc_callbacks import ClassStatistics, rank_sources
from nc_callbacks.functional import gcv_shrinkage, h_score, oas_shrinkage
from nc_callbacks.transfer.features import SEED
from nc_callbacks.transfer.scores import LARGER, Ranking, SourceScore
from tests import reference
from tests.callbacks.common import Tally
from tests.functional.test_transferability import expected as log_evidence_of_all
from tests.functional.test_transferability import pseudo_inverse_score
from tests.functional.test_whitening import expected
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
    assert [score.lda_accuracy for score in scores] == sorted((score.lda_accuracy for score in scores), reverse=True)
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
        statistics = ClassStatistics(K)
        statistics.update(X[:, :p], Y)
        found = statistics.compute()
        shrinkage = max(float(gcv_shrinkage(found)), float(oas_shrinkage(found)))
        weight, bias = expected(X[:, :p].numpy(), Y.numpy(), K, shrinkage)
        test = X_TEST[:, :p].double().numpy()
        assert score.lda_accuracy == pytest.approx(((test @ weight.T + bias).argmax(1) == Y_TEST.numpy()).mean())
        nearest = np.linalg.norm(test[:, None] - moments.means, axis=2).argmin(1)
        assert score.ncc_accuracy == pytest.approx((nearest == Y_TEST.numpy()).mean())
        assert score.logme == pytest.approx(log_evidence_of_all(X[:, :p].numpy(), Y.numpy(), K), rel=1e-5)
        assert score.h_score == pytest.approx(pseudo_inverse_score(X[:, :p].numpy(), Y.numpy()), rel=1e-5)
        assert score.h_score_regularised == pytest.approx(float(h_score(found, regularised=True)), rel=1e-6)
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
    generator = torch.Generator().manual_seed(SEED)
    drawn = torch.cat([torch.rand(len(part), generator=generator) for part in Y.split(40)])
    out, half = drawn < 0.2, int((drawn < 0.5).sum())
    assert score.cm_accuracy == pytest.approx(accuracy(X[~out], Y[~out], X[out], Y[out]))
    larger = rank_sources({"a": backbone}, LOADER, K, holdout=0.5)
    assert larger[0].nc1 not in (score.nc1, math.nan)
    assert str(larger).startswith(f"{N - half} training and {half} test samples of {K} classes\n")


@pytest.mark.parametrize("seed", [0, 1, 42])
def test_the_seed_of_the_data_does_not_tell_which_samples_are_held_out(seed):
    # A fifth of the labels are 0, those with the least numbers: without them in training the answer would be wrong.
    y = (torch.rand(N, generator=torch.Generator().manual_seed(seed)) * K).long()
    x = torch.eye(K)[y] + 0.01 * torch.randn(N, K, generator=torch.Generator().manual_seed(9))
    loader = DataLoader(TensorDataset(x, y), batch_size=N)
    (score,) = rank_sources({"a": nn.Identity()}, loader, K)
    assert (score.cm_accuracy, score.ncc_accuracy) == (1, 1), score.error


def test_where_torch_has_no_processes(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    monkeypatch.delattr(torch.distributed, "is_initialized")
    (score,) = rank_sources({"a": nn.Identity()}, LOADER, K, TEST)
    assert score.cm_accuracy == pytest.approx(accuracy(X, Y, X_TEST, Y_TEST)), score.error


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


@pytest.mark.parametrize("by", LARGER)
def test_order_is_that_of_the_score_asked_for(by):
    backbones = {f"{p}": Columns(p) for p in (2, P, 6)} | {"broken": Broken()}
    scores = rank_sources(backbones, LOADER, K, TEST, by=by)
    values = [getattr(score, by) for score in scores[:3]]
    assert values == sorted(values, reverse=by not in ("nc1", "mu_ratio"))
    assert scores[3].name == "broken"


class Deep(nn.Module):
    """An image network with a token layer, and one that hides the classes at its end."""

    def __init__(self):
        super().__init__()
        self.maps = nn.Unflatten(1, (P, 1, 1))
        self.wide = nn.Upsample(scale_factor=2)
        self.tokens = nn.Flatten(2)
        self.turned = nn.Identity()
        self.out = nn.Linear(P, 3)
        self.calls = Tally()

    def forward(self, x):
        self.calls.calls += 1
        return self.out(self.turned(self.tokens(self.wide(self.maps(x))).transpose(1, 2)).mean(1)) * 0 + x[:, :3]


def test_layers_are_ranked_from_the_same_pass():
    backbone = Deep()
    scores = rank_sources({"deep": backbone, "plain": Columns(3)}, LOADER, K, TEST, layers=("wide", "turned"))
    assert backbone.calls.calls == math.ceil(N / 40) + math.ceil(len(Y_TEST) / 64)
    by = {(score.name, score.layer): score for score in scores}
    whole = rank_sources({"whole": Columns(P)}, LOADER, K, TEST)[0]
    for layer in ("wide", "turned"):  # maps are averaged over positions, sequences over tokens
        for name in ("lda_accuracy", "cm_accuracy", "logme", "nc1", "h_score"):
            assert getattr(by["deep", layer], name) == pytest.approx(getattr(whole, name), rel=1e-5)
    assert by["deep", ""].lda_accuracy == by["plain", ""].lda_accuracy < whole.lda_accuracy
    assert "The backbone has no module 'wide'" in by["plain", "wide"].error
    assert [score.layer for score in scores[:2]] == ["wide", "turned"]


def test_a_layer_that_fails_leaves_the_others_alone():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.same, self.idle, self.whole = nn.Identity(), nn.Identity(), nn.Flatten()

        def forward(self, x):
            return self.whole(self.same(self.same(x)))

    scores = rank_sources({"a": Twice()}, LOADER, K, TEST, layers=("same", "idle", "sam", "whole"))
    by = {score.layer: score for score in scores}
    assert by[""].lda_accuracy > 0.5
    assert by["whole"].lda_accuracy == by[""].lda_accuracy
    assert "it returned something else or ran again" in by["same"].error
    assert "it did not run" in by["idle"].error
    assert "did you mean 'same'" in by["sam"].error


def test_the_whitened_score_is_nan_where_there_is_one_sample_a_class():
    x, y = torch.eye(K, P), torch.arange(K)
    loader = DataLoader(TensorDataset(x, y), batch_size=K)
    with pytest.warns(UserWarning, match="lda_accuracy is NaN: Σ_W is 0"):
        (score,) = rank_sources({"a": nn.Identity()}, loader, K, loader)
    assert math.isnan(score.lda_accuracy)
    assert score.ncc_accuracy == 1
    assert not score.error


def test_features_too_wide_for_their_covariance_are_refused():
    (score,) = rank_sources({"a": nn.Linear(P, 20_000)}, LOADER, K)
    assert "A ranking needs Σ_W, p × p numbers: with p = 20,000 that is 3.0 GiB" in score.error


def test_ranking_prints_and_becomes_a_frame(monkeypatch):
    rows = [
        SourceScore("a", 0.5, 2.0, 0.1, 3.0, lda_accuracy=0.7),
        SourceScore("b", math.nan, math.nan, math.nan, 0.1, "E: x\ny"),
    ]
    ranking = Ranking(rows[::-1], on="digits")
    first, head, a, b = str(ranking).splitlines()
    assert (first, head.split()[:3]) == ("digits", ["by", "lda_accuracy", "lda_accuracy"])
    assert a.split()[:3] == ["a", "0.7000", "0.5000"]
    assert b.split() == ["b", "E:", "x", "y"]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match="pip install pandas"):
        ranking.to_frame()
    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=lambda data, columns: (data, columns)))
    data, columns = ranking.to_frame()
    assert [row["name"] for row in data] == ["a", "b"]
    assert columns[:6] == ["name", "cm_accuracy", "nc1", "mu_ratio", "seconds", "error"]


class TestBadInputs:
    def test_names(self):
        with pytest.raises(ValueError, match=r"by must be one of lda_accuracy, .*, got 'accuracy'"):
            rank_sources({"a": nn.Identity()}, LOADER, K, by="accuracy")
        with pytest.raises(ValueError, match=r"layers must be a sequence of names of modules, got 'fc'"):
            rank_sources({"a": nn.Identity()}, LOADER, K, layers="fc")

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


def test_a_notebook_shows_a_table():
    nothing = dict.fromkeys(("cm_accuracy", "nc1", "mu_ratio"), math.nan)
    failed = SourceScore(name="c", seconds=0.1, **nothing, error="ValueError: x < y")
    scores = [SourceScore("a<b>", 0.5, 2.0, 0.1, 0.1, lda_accuracy=0.75), failed]
    html = Ranking(scores, on="5 samples")._repr_html_()
    assert html.count("<tr>") == 3
    assert "<caption>By lda_accuracy, on 5 samples</caption>" in html
    assert "<th>a&lt;b&gt;</th><td><b>0.7500</b></td><td>0.5000</td>" in html
    assert f"<th>c</th><td colspan='{len(LARGER) + 1}'>ValueError: x &lt; y</td>" in html
