"""What a look through further layers is said to take."""

import pytest
import torch

from nc_callbacks.engine import work
from nc_callbacks.probe import Batch, Head
from nc_callbacks.probe.linear import Shape
from nc_callbacks.statistics import state_bytes

HEAD = Head("head", Shape("last", (8,), 3))


def work_of(p=2500, covariance="pooled", forward=0.5, **head):
    batch = Batch({"head": torch.randn(6, 8), "wide": torch.randn(6, p)}, torch.randn(6, 3), torch.arange(6) % 3)
    layers = {"head": (8, "pooled"), "wide": (p, covariance)}
    return work.Work(batch, Head("head", HEAD.shape, **head), layers, splits=2, ranks=1, forward=forward)


def test_memory_is_that_of_all_layers():
    memory = sum(state_bytes(3, p, "pooled", 1, 1) for p in (8, 2500))
    said = work_of().said(batches=10, max_features=None)
    assert (
        f"1 further layer, the widest 'wide' with 2,500 features. Class statistics take up to {memory / 2**20:,.0f}"
        in said
    )
    assert "projected" not in said


@pytest.mark.parametrize(("batches", "text"), [(0, ""), (float("inf"), ""), (200, "; the 200 of an epoch 2 min")])
def test_time_of_an_epoch_where_its_batches_are_known(monkeypatch, batches, text):
    monkeypatch.setattr(work.Work, "_seconds_of", lambda *_: 0.0)
    assert work_of(forward=0.6).said(batches, None).endswith(f"a batch of 6 rows 600 ms{text}.")


def test_projected_layers_are_counted():
    said = work_of(projected=frozenset({"wide"})).said(1, 64)
    assert "features, 1 of the layers projected to 64." in said


def test_time_grows_with_the_square_of_the_features(monkeypatch):
    """Of wide layers a part is timed: here each time takes a second."""
    seconds = iter(range(100))
    monkeypatch.setattr(work, "now", lambda device: float(next(seconds)))
    # 1,020 rows of the first 1,024 features.
    assert work_of()._seconds_of("wide", "pooled") == pytest.approx((2500 / 1024) ** 2 / 1020)
    assert work_of()._seconds_of("wide", "none") == pytest.approx(2500 / 1024 / 1020)


def test_no_statistics_as_large_as_those_of_a_look_are_made(monkeypatch):
    """Covariances of 1,000 classes and 2,500 features would take 25 GB."""
    made, widths = [], []

    class Fake:
        def __init__(self, *args, **kwargs):
            made.append(kwargs)

        def to(self, device):
            return self

        def update(self, rows, targets):
            widths.append(rows.shape[1])

        def settle(self):
            pass

    monkeypatch.setattr(work, "ClassStatistics", Fake)
    work_of(covariance="per_class").seconds_a_row()
    assert [kwargs["covariance"] for kwargs in made] == ["pooled", "pooled"]
    assert widths == [8, 1024]
