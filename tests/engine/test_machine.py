"""What statistics will need of the machine's memory is said before training."""

from __future__ import annotations

import pytest
import torch

from nc_callbacks import NeuralCollapse, WeightMeanAlignment
from nc_callbacks.engine import machine
from nc_callbacks.statistics import state_bytes
from tests.callbacks.common import Classifier, loader, trainer

CPU = torch.device("cpu")


def test_of_this_machine_is_no_more_than_it_has():
    with open("/proc/meminfo") as lines:
        total = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal"))
    found = machine.memory_of(CPU)
    assert found is not None
    assert 0 < found <= total
    assert machine.memory_of(torch.device("meta")) is None


@pytest.mark.parametrize(("there", "told"), [(4.001, False), (3.999, True)])
def test_over_a_quarter(monkeypatch, there, told):
    needed = state_bytes(10, 512, "pooled") + state_bytes(10, 64, "none")
    monkeypatch.setattr(machine, "memory_of", lambda device: int(there * needed))
    said = machine.said_of_memory({"head": (512, "pooled"), "body": (64, "none")}, 10, 1, 1, CPU)
    assert (said is not None) == told
    if told:
        assert "'head' (10 classes, 512 features, covariance 'pooled')" in said


def test_a_pooled_matrix_is_there_twice_and_one_a_class_for_each_class():
    """As sums in two parts of float32, and as what is given in float64: 16 bytes an entry at least."""
    none, pooled, each = (state_bytes(10, 256, covariance) for covariance in ("none", "pooled", "per_class"))
    assert pooled - none >= 16 * 256**2
    assert each - pooled >= 9 * 16 * 256**2


def test_ranks_and_splits_take_more():
    alone = state_bytes(100, 256, "per_class")
    # A copy of the sums in float32; moments of 100 classes in float32, since they are over 32 MiB in float64.
    assert state_bytes(100, 256, "per_class", ranks=2) - alone == 4 * (100 * 256**2 + 3 * 100 * 256)
    assert state_bytes(100, 256, "per_class", kept=2) - alone == 2 * (4 * 100 * 256**2 + 8 * 100 * 256)


def test_is_said_once_and_training_goes_on(monkeypatch):
    monkeypatch.setattr(machine, "memory_of", lambda device: 2**20)
    run = trainer(NeuralCollapse(), WeightMeanAlignment(), max_epochs=2)
    with pytest.warns(UserWarning, match="Class statistics will take up to .* and cpu has 0.0 GiB") as caught:
        run.fit(Classifier(), loader())
    assert sum("Class statistics" in str(one.message) for one in caught) == 1
    assert "nc/train/nc1" in run.callback_metrics
