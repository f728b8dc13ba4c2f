"""Batches that wait come out as the same samples, in order."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nc_callbacks import NeuralCollapse, QuasiInterpolation
from nc_callbacks.engine.split import Gathered
from nc_callbacks.engine.waiting import Waiting, together
from nc_callbacks.probe import Batch
from tests.callbacks.common import Classifier, loader, samples, trainer, whole_set


def batch(rows, width=3, start=0):
    numbers = torch.arange(start, start + rows)
    features = {"head": numbers[:, None] * torch.ones(width), "body": numbers[:, None].float()}
    return Batch(features, numbers[:, None] * torch.ones(2), numbers % 2)


@given(st.lists(st.integers(0, 700), max_size=12))
def test_all_samples_in_order(sizes):
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    found = list(together([batch(rows, start=start) for rows, start in zip(sizes, starts, strict=True)]))
    seen = torch.cat([torch.empty(0), *(part.features["body"].squeeze(1) for part in found)])
    assert torch.equal(seen, torch.arange(sum(sizes)).float())
    for part in found:
        numbers = part.features["body"].long().squeeze(1)
        assert torch.equal(part.features["head"], numbers[:, None] * torch.ones(3))
        assert torch.equal(part.outputs, numbers[:, None] * torch.ones(2))
        assert torch.equal(part.targets, numbers % 2)
    # Nothing waits beyond 1,024 samples, and nothing is handed on before.
    assert all(1024 <= len(part.targets) < 1024 + 700 for part in found[:-1])


def test_wide_features_do_not_wait_for_many_samples():
    waiting = Waiting()
    assert not list(waiting.add(batch(4, width=2**18)))
    assert [len(part.targets) for part in waiting.add(batch(12, width=2**18))] == [16]
    assert not list(waiting.take())


def test_another_width_is_handed_on_apart():
    found = list(together([batch(2), batch(3), batch(4, width=5)]))
    assert [part.features["head"].shape for part in found] == [(5, 3), (4, 5)]


@pytest.mark.parametrize("mode", ["epoch_end", "online"])
def test_statistics_are_updated_seldom(mode, monkeypatch):
    """Five batches of sixteen are one update; the numbers are those of all."""
    updates = []
    add = Gathered._add
    monkeypatch.setattr(Gathered, "_add", lambda self, batches: add(self, _counted(batches, updates)))
    callbacks, model = [NeuralCollapse(mode=mode), QuasiInterpolation(mode=mode)], Classifier()
    fit = trainer(*callbacks)
    model.configure_optimizers = lambda: torch.optim.SGD(model.parameters(), 0.0)
    model.body[1], model.body[3] = torch.nn.Identity(), torch.nn.Identity()
    fit.fit(model, loader())
    assert updates == [80]
    data = samples()
    expected = whole_set(model, data, data)
    for name in ("nc1", "nc4", "ncc_accuracy", "accuracy"):
        assert callbacks[0].latest[f"nc/train/{name}"] == pytest.approx(expected[name], rel=1e-5), name


def _counted(batches, updates):
    for part in batches:
        updates.append(len(part.targets))
        yield part
