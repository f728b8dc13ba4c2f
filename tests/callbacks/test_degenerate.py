"""Data and classifiers at the edge of what is defined: numbers, infinity or NaN as documented, never an exception."""

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nc_callbacks import NeuralCollapse
from tests import reference
from tests.callbacks.common import Classifier, K, loader, trainer
from tests.engine.test_failures import Switch, all_four, assert_whole, fit_with_warnings


class Still(Classifier):
    """Features are the inputs as they are, and weights do not move."""

    def __init__(self, p=6, num_classes=K):
        super().__init__()
        self.body, self.head = nn.Identity(), nn.Linear(p, num_classes)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


def measured(x, y, p, num_classes, batch_size=7):
    callbacks, data = all_four(), DataLoader(TensorDataset(x, y), batch_size)
    fit_with_warnings(callbacks, Still(p, num_classes), data, max_epochs=1)
    return {key: value for callback in callbacks for key, value in callback.latest.items()}


def numbers(latest):
    return {key.rpartition("/")[2]: value for key, value in latest.items() if isinstance(value, float)}


class TestData:
    @pytest.mark.parametrize(
        ("counts", "p"), [((20, 1, 5, 1), 6), ((9, 4), 6), ((20, 5, 3), 1), ((3, 2, 2), 40), ((1, 1, 1, 1), 6)]
    )
    def test_few_samples_classes_or_features(self, counts, p):
        x = torch.randn(sum(counts), p, generator=torch.Generator().manual_seed(0))
        y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        latest = measured(x, y, p, len(counts))
        moments = reference.moments(x.numpy(), y.numpy(), len(counts))
        found = numbers(latest)
        expected = {
            "nc1_quotient": reference.nc1_quotient(moments.within, moments.means),
            "nc1_cdnv": reference.nc1_cdnv(moments.traces, moments.means),
            "nc2_equinorm": reference.nc2_equinorm(reference.centred(moments.means)),
            "nc2_etf": reference.nc2_etf(reference.centred(moments.means)),
        }
        if len(counts) - 1 <= p:
            expected["nc1"] = reference.nc1(moments.within, moments.means)
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
        # With one feature two of three directions coincide; without spread there is no ratio of its entries.
        undefined = {"nc2_uniformity_var"} if p == 1 else {"sigma_ratio"} if max(counts) == 1 else set()
        if min(p, sum(counts)) < 3:
            undefined |= {"spectrum_decay", "spectrum_decay_fit"}
        assert {name for name, value in found.items() if math.isnan(value)} == undefined
        assert latest["nc/train/counts"].tolist() == list(counts)

    def test_all_features_equal(self):
        latest = measured(torch.ones(40, 6), torch.arange(40) % K, 6, K)
        found = numbers(latest)
        assert math.isnan(found["nc1"])
        assert not math.isfinite(found["nc1_cdnv"])
        assert found["spectrum_effective_rank"] == pytest.approx(1)
        assert found["mu_ratio"] == pytest.approx(1)

    def test_class_means_that_coincide(self):
        x = torch.randint(9, (16, 6), generator=torch.Generator().manual_seed(0)).float()
        # Each class has 8 whole numbers and their negatives, so that its mean is exactly 0.
        latest = measured(torch.cat([x, -x]), (torch.arange(16) % 2).repeat(2), 6, 2, batch_size=32)
        assert latest["nc/train/nc1"] == math.inf
        assert latest["nc/train/nc1_quotient"] == math.inf

    def test_half_precision_that_overflows(self):
        class Half(Still):
            def forward(self, x):
                return self.head(x.half() * 7e4 if self.big and not self.training else x)

        model, callbacks = Half(), all_four()
        model.big = False
        switch = Switch(lambda on: setattr(model, "big", on))
        model.head.forward = lambda h: nn.functional.linear(h.float(), model.head.weight, model.head.bias)
        _, told = fit_with_warnings([switch, *callbacks], model, pattern="infinite features")
        assert len(told) == 1
        for callback in callbacks:
            nan = [[math.isnan(v) for v in numbers(record).values()] for record in callback.history]
            assert [len(values) > 0 for values in nan] == [True] * 3
            assert not any(nan[0])
            assert all(nan[1])
            assert not any(nan[2])


def test_centred_means_choose_among_the_classes_that_are_there():
    """The first class has no samples, so that places among the others are not their numbers."""
    y = torch.arange(60) % 3 + 1
    x = 5 * torch.eye(6)[y] + torch.randn(60, 6, generator=torch.Generator().manual_seed(0)) / 10
    assert measured(x, y, 6, 4)["nc/train/accuracy_centred_means"] == 1


class TestHeads:
    @pytest.mark.parametrize("head", [None, "head"])
    def test_one_class(self, head):
        with pytest.raises(ValueError, match=r"head 'head' has 1 output; neural collapse compares at least 2 classes"):
            trainer(NeuralCollapse(head=head)).fit(Classifier(num_classes=1), loader())

    def test_without_weight(self):
        with pytest.raises(ValueError, match=r"head 'body.2' \(ReLU\) has no weight matrix.*Candidates:"):
            trainer(NeuralCollapse(head="body.2")).fit(Classifier(), loader())

    def test_absent(self):
        model = Classifier()
        model.head = nn.ConstantPad1d((0, 3), 0)
        model.body[4] = nn.Linear(12, 4)
        with pytest.raises(ValueError, match=r"No classifier found: the model's output has shape \(16, 7\)"):
            trainer(NeuralCollapse()).fit(model, loader())

    def test_frozen(self):
        callback, model = NeuralCollapse(), Classifier()
        model.head.requires_grad_(False)
        fit_with_warnings([callback], model)
        assert_whole(callback, model)

    @pytest.mark.filterwarnings("ignore:No train sample has class")
    def test_another_number_of_classes_in_the_checkpoint(self, tmp_path):
        def half(classes, file):
            fit = trainer(NeuralCollapse(), max_epochs=2)
            fit.fit(Classifier(num_classes=classes), loader())
            fit.save_checkpoint(tmp_path / file)
            return torch.load(tmp_path / file, weights_only=True)

        checkpoint = half(K + 1, "five.ckpt") | {"callbacks": half(K, "four.ckpt")["callbacks"]}
        torch.save(checkpoint, tmp_path / "mixed.ckpt")
        callback = NeuralCollapse()
        with pytest.warns(
            UserWarning, match=r"in the checkpoint is of 4 classes, and 'head' has 5: it starts"
        ) as caught:
            trainer(callback, max_epochs=3).fit(
                Classifier(num_classes=K + 1), loader(), ckpt_path=str(tmp_path / "mixed.ckpt")
            )
        assert sum("it starts anew" in str(w.message) for w in caught) == 1
        assert [record["epoch"] for record in callback.history] == [2]
