"""Scores of samples against out-of-distribution data, as they are logged, against counting pairs."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import nc_callbacks.functional as F_nc
from nc_callbacks import NeuralCollapse
from nc_callbacks.distributed import Ranks
from nc_callbacks.engine.buffer import Samples
from nc_callbacks.engine.decisions import Decisions
from nc_callbacks.engine.outside import Scorer
from nc_callbacks.engine.request import LayerNeeds, Needs
from nc_callbacks.statistics import ClassStatistics
from tests.callbacks.common import Classifier, K, loader, samples, trainer
from tests.functional.test_outside import by_pairs

SCORES = ("energy", "nearest_mean", "nci", "neco", "mahalanobis")
FASHION = Path("/usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz")


def outside_samples(n=50):
    return 2.5 * torch.randn(n, 6, generator=torch.Generator().manual_seed(4)) + 1


def still(num_classes=K):
    """A classifier that training leaves as it is."""
    model = Classifier(num_classes=num_classes)
    model.configure_optimizers = lambda: torch.optim.SGD(model.parameters(), 0.0)
    return model


def expected(model, seed):
    """AUROC and false positive rate of each score, of the samples of a seed, with the moments of those of seed 0."""
    model = model.eval()
    with torch.no_grad():
        train, data, outside = (model.body(x) for x in (samples(0)[0], samples(seed)[0], outside_samples()))
        statistics = ClassStatistics(K)
        statistics.update(train, samples(0)[1])
        moments, weight = statistics.compute(), model.head.weight

        def scores(h):
            f = model.head(h)
            return {
                "energy": F_nc.energy_score(f),
                "nearest_mean": F_nc.nearest_mean_score(h, moments.means),
                "nci": F_nc.nci_score(h, weight, moments.sample_mean, f.argmax(1)),
                "neco": F_nc.neco_score(h, moments),
                "mahalanobis": F_nc.mahalanobis_score(h, moments),
            }

        within, other = scores(data), scores(outside)
    return {name: by_pairs(within[name].float().numpy(), other[name].float().numpy()) for name in SCORES}


@pytest.mark.parametrize("cache", ["64MiB", 0])
@pytest.mark.parametrize("bare", [False, True])
def test_numbers_are_those_of_counting(cache, bare):
    outside = outside_samples()
    data = outside if bare else TensorDataset(outside, torch.zeros(len(outside), dtype=torch.long))
    callback = NeuralCollapse(
        splits=["train", "val"], ood_loader=DataLoader(data, 7), ood_scores=True, feature_cache=cache
    )
    model = still()
    trainer(callback).fit(model, loader(shuffle=False), loader(1, shuffle=False))
    for split, seed in (("train", 0), ("val", 1)):
        for name, (auroc, rate) in expected(model, seed).items():
            found = [callback.latest[f"nc/{split}/ood_{kind}_{name}"] for kind in ("auroc", "fpr")]
            assert found == pytest.approx([auroc, rate], abs=2e-3), (split, name)


def test_online_has_them_too():
    callback = NeuralCollapse(ood_loader=DataLoader(outside_samples(), 7), ood_scores=True, mode="online")
    trainer(callback).fit(still(), loader(shuffle=False))
    assert all(0 <= callback.latest[f"nc/train/ood_auroc_{name}"] <= 1 for name in SCORES)


def test_one_pass_over_the_data_is_made():
    def calls(**settings):
        model = still()
        trainer(NeuralCollapse(ood_loader=DataLoader(outside_samples(), 7), **settings)).fit(model, loader())
        return model.forward_calls

    assert calls(ood_scores=True) == calls()


@pytest.mark.parametrize("mode", ["epoch_end", "online"])
def test_of_several_loaders_each_has_the_numbers_that_it_has_alone(mode):
    x = outside_samples()
    loaders = {"near": DataLoader(x / 2, 7), "far": DataLoader(x + 3, 9)}

    def of(ood_loader):
        callback = NeuralCollapse(ood_loader=ood_loader, ood_scores=True, layers=["body"], mode=mode)
        trainer(callback).fit(still(), loader(shuffle=False))
        return callback.latest

    both = of(loaders)
    for name, one in loaders.items():
        alone = of(one)
        keys = [key for key in alone if "nc5" in key or "ood_" in key]
        assert len(keys) == 12
        for key in keys:
            place, metric = key.rsplit("/", 1)
            assert both[f"{place}/{name}/{metric}"] == alone[key], key
    assert both["nc/train/near/nc5"] != both["nc/train/far/nc5"]
    assert "nc/train/nc5" not in both
    assert both["nc/train/nc1"] == alone["nc/train/nc1"]


@pytest.mark.parametrize(
    ("data", "batch_fn"),
    [
        (TensorDataset(outside_samples()), None),
        (TensorDataset(outside_samples(), torch.zeros(50)), None),
        (
            TensorDataset(outside_samples() / 2),
            lambda batch: (2 * batch[0] if len(batch) == 1 else batch[0], batch[-1]),
        ),
    ],
    ids=["inputs in lists of one", "with targets", "as batch_fn gives them"],
)
def test_batches_of_inputs_alone(data, batch_fn):
    found = []
    for given in (outside_samples(), data):
        callback = NeuralCollapse(ood_loader=DataLoader(given, 7), batch_fn=batch_fn)
        trainer(callback).fit(still(), loader(shuffle=False))
        found.append(callback.latest["nc/train/nc5"])
    assert found[0] == found[1] > 0


@pytest.mark.parametrize("name", ["", "a/b", "val", 3])
def test_names_of_loaders_fit_into_keys(name):
    with pytest.raises(ValueError, match=f"name is a part of log keys: .* got {name!r}"):
        NeuralCollapse(ood_loader={name: DataLoader(outside_samples(), 7)})
    with pytest.raises(ValueError, match="ood_loader holds no loader"):
        NeuralCollapse(ood_loader={})


def test_a_loader_is_not_called_like_a_layer():
    callback = NeuralCollapse(ood_loader={"body": DataLoader(outside_samples(), 7)}, layers=["body"])
    with pytest.raises(ValueError, match="out-of-distribution loader 'body' has the name of a layer"):
        trainer(callback).fit(still(), loader())


def test_callbacks_share_loaders_of_the_same_names_and_no_others():
    one = DataLoader(outside_samples(), 7)
    model = still()
    callbacks = [NeuralCollapse(ood_loader={"a": one}), NeuralCollapse(ood_loader={"a": one}, layers=["body"])]
    trainer(*callbacks).fit(model, loader())
    assert callbacks[0].latest["nc/train/a/nc5"] == callbacks[1].latest["nc/train/a/nc5"]
    other = [NeuralCollapse(ood_loader={"b": one}, prefix="nc2"), callbacks[0]]
    with pytest.raises(ValueError, match="different out-of-distribution loaders"):
        trainer(*other).fit(model, loader())


def test_nothing_is_scored_without_data_to_tell_apart():
    with pytest.raises(ValueError, match="ood_scores=True needs the data to tell apart: pass ood_loader"):
        NeuralCollapse(ood_scores=True)


def test_without_a_covariance_the_others_stay():
    """One sample a class: Σ_W is 0."""

    class Points(Classifier):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.0)

    x = torch.eye(6)[:K]
    points = DataLoader(TensorDataset(x.repeat(3, 1), torch.arange(K).repeat(3)), 6)
    callback = NeuralCollapse(ood_loader=DataLoader(outside_samples(), 7), ood_scores=True)
    with pytest.warns(UserWarning, match="ood_auroc_mahalanobis and ood_fpr_mahalanobis are not measured: Σ"):
        trainer(callback).fit(Points(), points)
    assert callback.latest["nc/train/ood_auroc_nearest_mean"] == pytest.approx(1)
    assert "nc/train/ood_auroc_mahalanobis" not in callback.latest


class Digits(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 3e-3)


@pytest.mark.skipif(not FASHION.exists(), reason="needs Debian's dataset-fashion-mnist")
def test_digits_against_fashion_mnist():
    """Clothes, brought to 8 × 8 pixels, are told from digits by every score."""
    x, y = (torch.tensor(array) for array in load_digits(return_X_y=True))
    data = TensorDataset(x.float() / 16, y)
    with gzip.open(FASHION) as file:
        pixels = np.frombuffer(file.read(16 + 500 * 784), np.uint8)[16:].reshape(500, 1, 28, 28)
    clothes = nn.functional.adaptive_avg_pool2d(torch.tensor(pixels / 255, dtype=torch.float32), 8).flatten(1)
    callback = NeuralCollapse(ood_loader=DataLoader(clothes, 250), ood_scores=True, epochs=[19])
    trainer(callback, max_epochs=20).fit(Digits(), DataLoader(data, 256, shuffle=True))
    found = {name: callback.latest[f"nc/train/ood_auroc_{name}"] for name in SCORES}
    assert min(found.values()) > 0.7, found
    assert found["nearest_mean"] > 0.8


def test_samples_that_do_not_count_have_no_score_and_no_share():
    """As on a device, where they are not taken out but marked."""
    model = still().eval()
    x, y = samples(0)
    with torch.no_grad():
        h = model.body(x)
        f = model.head(h)
    statistics = ClassStatistics(K)
    statistics.update(h, y)
    moments, counted = statistics.compute(), torch.arange(len(y)) % 3 > 0
    needs = Needs(head=LayerNeeds(nearest_mean=True), mismatch=True, centred_means=True, ood_scores=True)
    scorer = Scorer.of(moments, model.head.weight.detach(), False)
    marked, taken = (Decisions("head", needs, {"head": moments}, Ranks.of_world(), scorer) for _ in range(2))
    marked.update(Samples({"head": h}, f, y, counted))
    taken.update(Samples({"head": h[counted]}, f[counted], y[counted]))
    assert marked.shares() == taken.shares()
    assert 0 < marked.shares()["nearest head"] < 1
    for name in scorer.names:
        assert torch.equal(torch.cat(marked.within[name]), torch.cat(taken.within[name])), name
