"""Samples that wait come out as the same samples, in order; caches share one budget."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nc_callbacks import NeuralCollapse, QuasiInterpolation
from nc_callbacks.engine.buffer import Budget, Buffer, Cache, Samples
from nc_callbacks.engine.split import SplitStatistics
from nc_callbacks.probe import Batch
from tests.callbacks.common import Classifier, loader, samples, trainer, whole_set


def part(rows, width=3, start=0):
    numbers = torch.arange(start, start + rows)
    features = {"head": numbers[:, None] * torch.ones(width), "body": numbers[:, None].float()}
    return Samples.of(Batch(features, numbers[:, None] * torch.ones(2), numbers % 2), None)


def handed_on(parts):
    buffer = Buffer()
    return [found for given_part in parts for found in buffer.add(given_part)] + list(buffer.take())


@given(st.lists(st.integers(0, 2800), max_size=8))
def test_all_samples_in_order(sizes):
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    found = handed_on([part(rows, start=start) for rows, start in zip(sizes, starts, strict=True)])
    seen = torch.cat([torch.empty(0), *(part.features["body"].squeeze(1) for part in found)])
    assert torch.equal(seen, torch.arange(sum(sizes)).float())
    for some in found:
        numbers = some.features["body"].long().squeeze(1)
        assert torch.equal(some.features["head"], numbers[:, None] * torch.ones(3))
        assert torch.equal(some.outputs, numbers[:, None] * torch.ones(2))
        assert torch.equal(some.targets, numbers % 2)
    # Nothing waits beyond 4,096 samples, and nothing is handed on before.
    assert all(4096 <= len(some) < 4096 + 2800 for some in found[:-1])


def test_wide_features_do_not_wait_for_many_samples():
    buffer = Buffer()
    assert not list(buffer.add(part(4, width=2**18)))
    assert [len(some) for some in buffer.add(part(12, width=2**18))] == [16]
    assert not list(buffer.take())


def test_another_width_is_handed_on_apart():
    found = handed_on([part(2), part(3), part(4, width=5)])
    assert [some.features["head"].shape for some in found] == [(5, 3), (4, 5)]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_which_samples_count_is_decided_once(device):
    targets = torch.tensor([0, -100, 1, -100], device=device)
    batch = Batch({"head": torch.zeros(4, 3, device=device)}, torch.zeros(4, 2, device=device), targets)
    found = Samples.of(batch, -100)
    if device == "cpu":
        assert found.counted is None
        assert found.targets.tolist() == [0, 1]
        assert (found.features["head"].shape, found.outputs.shape) == ((2, 3), (2, 2))
    else:
        # Elsewhere the rows stay, with a mask, for asking how many there are would wait for the device.
        assert found.counted.shape == (4,)
        assert len(found) == 4


def test_masks_are_joined_and_counted():
    parts = [part(3), part(2)]
    masked = [Samples(p.features, p.outputs, p.targets, p.targets == 0) for p in parts]
    joined = Samples.joined(masked)
    assert joined.counted.tolist() == [True, False, True, True, False]
    assert (joined.number().item(), joined.total(joined.targets >= 0).item()) == (3, 3)


def test_caches_share_a_budget():
    one_part = part(10).features["body"].nbytes + part(10).targets.nbytes
    budget = Budget(3 * one_part)
    first, second = (Cache(budget, ["body"], outputs=False) for _ in range(2))
    first.add(part(10))
    first.add(part(10))
    second.add(part(10))
    assert (first.complete, second.complete, budget.room) == (True, True, 0)
    second.add(part(10))
    assert (second.complete, list(second), budget.room) == (False, [], one_part)
    assert [sorted(kept.features) for kept in first] == [["body"], ["body"]]
    assert [kept.outputs.shape for kept in first] == [(10, 0), (10, 0)]
    first.clear()
    assert budget.room == 3 * one_part


@pytest.mark.parametrize("mode", ["epoch_end", "online"])
def test_statistics_are_updated_seldom(mode, monkeypatch):
    """Five batches of sixteen are one update; the numbers are those of all."""
    updates = []
    add = SplitStatistics._add_features
    monkeypatch.setattr(
        SplitStatistics, "_add_features", lambda self, some: (updates.append(len(some)), add(self, some))
    )
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
