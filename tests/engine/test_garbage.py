"""What a look leaves is free at once: a worker process that finds tensors of a GPU in its garbage is killed."""

import copy
import gc
import pickle
import warnings
import weakref

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from nc_callbacks import (
    CentredMeanHead,
    CentredMeanInit,
    FeatureSpectrum,
    NeuralCollapse,
    OutputErrors,
    QuasiInterpolation,
    WeightMeanAlignment,
    rank_sources,
)
from nc_callbacks.statistics import ClassStatistics, SoftmaxStatistics
from nc_callbacks.statistics.separation import ScoreSeparation
from tests.callbacks.common import Classifier, loader, samples, trainer
from tests.engine.test_failures import Breaking, Switch
from tests.processes import on_ranks

X, Y = samples()


def tensors_in_garbage():
    """How many tensors only a search for garbage would set free."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        return sum(isinstance(thing, torch.Tensor) for thing in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.collect()


class Watching(L.Callback):
    """Counts them where workers are forked, and after that."""

    def __init__(self):
        self.found = []

    def count(self, *_):
        self.found.append(tensors_in_garbage())

    on_train_epoch_start = on_validation_start = on_fit_end = count


@pytest.fixture(autouse=True)
def _no_other_search():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


ALL = {"splits": ["train", "val"], "layers": ["body.4"]}
CALLBACKS = {
    "none": list,
    "collapse": lambda: [NeuralCollapse(**ALL, lda_accuracy=True, ood_loader={"far": loader(5)}, ood_scores=True)],
    "alignment": lambda: [WeightMeanAlignment(**ALL, a2_residual=True, implicit="full")],
    "interpolation": lambda: [QuasiInterpolation(**ALL, samples=[0, 3])],
    "spectrum": lambda: [FeatureSpectrum(**ALL, feature_cache=0)],
    "online": lambda: [kind(mode="online") for kind in (NeuralCollapse, QuasiInterpolation)],
    "verified": lambda: [NeuralCollapse(verify=True)],
    "centred means": lambda: [CentredMeanInit(), NeuralCollapse()],
    "whitened means": lambda: [CentredMeanInit(whiten=True, scale="fit"), NeuralCollapse()],
}


@pytest.mark.parametrize("kind", CALLBACKS)
def test_a_fit_leaves_nothing(kind):
    watching, model = Watching(), Classifier()
    fit = trainer(*CALLBACKS[kind](), watching, max_epochs=3)
    fit.fit(model, loader(), loader(1))
    assert watching.found == [0] * len(watching.found)
    assert len(watching.found) >= 7


class Failing(Classifier):
    """Its second look and all that follow fail."""

    def forward(self, x):
        if not self.training and self.current_epoch:
            raise RuntimeError("out of order")
        return super().forward(x)


def test_looks_that_fail_leave_nothing():
    watching = Watching()
    with pytest.warns(UserWarning, match="out of order"):
        trainer(NeuralCollapse(), watching, max_epochs=4).fit(Failing(), loader())
    assert watching.found == [0] * 5


def test_a_loader_that_fails_leaves_nothing():
    watching, data = Watching(), Breaking()
    switch = Switch(lambda on: setattr(data, "broken", on))
    with pytest.warns(UserWarning, match="disk went away") as told:
        trainer(switch, NeuralCollapse(), watching, max_epochs=3).fit(Classifier(), DataLoader(data, 16))
    assert len([w for w in told if "disk" in str(w.message)]) == 1
    assert watching.found == [0] * 4


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(X, Y, strict=True)


def failing_on_one_rank(fails, data):
    class OfOne(Failing):
        def forward(self, x):
            return super().forward(x) if fails == torch.distributed.get_rank() else Classifier.forward(self, x)

    watching = Watching()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.disable()
        trainer(NeuralCollapse(), watching, devices=2, strategy="ddp", max_epochs=3).fit(OfOne(), DataLoader(data, 16))
    return watching.found


@pytest.mark.parametrize("data", [TensorDataset(X, Y), Stream()], ids=["rows", "stream"])
def test_nor_where_one_rank_of_two_fails(data):
    assert on_ranks(failing_on_one_rank, 2, 1, data) == [[0] * 4] * 2


METRICS = {
    "class statistics": lambda: ClassStatistics(4, covariance="per_class"),
    "output errors": lambda: OutputErrors(4),
    "softmax": lambda: SoftmaxStatistics(4),
    "separation": ScoreSeparation,
}
GIVEN = {"softmax": (torch.randn(80, 4), Y), "separation": (X[:, 0], X[:, 1]), "output errors": (torch.randn(80, 4), Y)}


@pytest.mark.parametrize("way", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("kind", METRICS)
def test_a_metric_is_free_when_nobody_holds_it(kind, way):
    metric = way(METRICS[kind]())
    metric.update(*GIVEN.get(kind, (X, Y)))
    metric.compute()
    gone = weakref.ref(metric)
    del metric
    assert gone() is None


def test_a_method_keeps_its_metric():
    update = ClassStatistics(4).update
    update(X, Y)
    assert update.__self__.update_count == 1


def test_heads_and_rankings_leave_nothing():
    data = DataLoader(TensorDataset(X, Y), batch_size=16)
    CentredMeanHead.from_loader(torch.nn.Linear(6, 8), data, 4, whiten=True)
    rank_sources({"one": torch.nn.Linear(6, 8), "two": torch.nn.Linear(6, 5)}, data, 4, test_loader=data)
    assert tensors_in_garbage() == 0


def test_a_subclass_that_calls_its_parent_counts_an_update_once():
    class Doubled(ClassStatistics):
        def update(self, x, y):
            super().update(2 * x, y)

        def compute(self):
            return super().compute().means

    metric, expected = Doubled(4), ClassStatistics(4)
    metric.update(X, Y)
    expected.update(X, Y)
    assert metric.update_count == 1
    torch.testing.assert_close(metric.compute(), 2 * expected.compute().means)
    gone = weakref.ref(metric)
    del metric
    assert gone() is None
