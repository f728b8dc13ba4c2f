"""trainer.validate and trainer.test, without a fit and after one."""

import warnings

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch import nn

from nc_callbacks import FeatureSpectrum, NeuralCollapse, QuasiInterpolation, WeightMeanAlignment
from tests import reference
from tests.callbacks.common import Classifier, loader, samples, trainer, whole_set

OF_TRAINING_MEANS = {"nc4", "ncc_accuracy"}


class Model(Classifier):
    def test_step(self, batch, batch_idx, dataloader_idx=0):
        self(batch[0])

    def predict_step(self, batch, batch_idx):
        return self(batch[0])


class WithTraining(Model):
    def train_dataloader(self):
        return loader(0)


class Data(LightningDataModule):
    def setup(self, stage):
        self.stage = stage

    def train_dataloader(self):
        return loader(0)

    def val_dataloader(self):
        return loader(1, shuffle=False)

    def test_dataloader(self):
        return loader(1, shuffle=False)


class OnlyForFit(Data):
    """Has its training data only where fit has set it up."""

    def setup(self, stage):
        if stage == "fit":
            self.train = loader(0)

    def train_dataloader(self):
        return self.train


def evaluate(fit, stage, model, **settings):
    return {"val": fit.validate, "test": fit.test}[stage](model, verbose=False, **settings)


def assert_whole(callback, model, split, data, place="", without=frozenset()):
    expected = whole_set(model, data, samples(0))
    for name, value in expected.items():
        key = f"nc/{split}/{name}{place}"
        if name in without:
            assert key not in callback.latest
        else:
            assert callback.latest[key] == pytest.approx(value, rel=1e-5, abs=1e-7), key


@pytest.mark.parametrize("mode", ["epoch_end", "online"])
@pytest.mark.parametrize("stage", ["val", "test"])
class TestWithoutFit:
    @pytest.mark.parametrize("source", ["module", "data module"])
    def test_training_means_where_the_training_loader_is_defined(self, stage, source, mode):
        callback = NeuralCollapse(splits=["val", "test"], mode=mode)
        model = WithTraining() if source == "module" else Model()
        data = {"dataloaders": loader(1, shuffle=False)} if source == "module" else {"datamodule": Data()}
        metrics = evaluate(trainer(callback), stage, model, **data)
        assert_whole(callback, model, stage, samples(1))
        assert not any(key.startswith("nc/train/") for key in callback.latest)
        assert metrics[0][f"nc/{stage}/nc4"] == pytest.approx(callback.latest[f"nc/{stage}/nc4"])
        assert callback.history == []

    @pytest.mark.parametrize("data", ["loader", "data module"])
    def test_what_needs_training_means_is_left_out_without_them(self, stage, data, mode):
        callback = NeuralCollapse(splits=["train", "val", "test"], mode=mode)
        alignment, model = WeightMeanAlignment(splits=["val", "test"], mode=mode), Model()
        settings = {"dataloaders": loader(1, shuffle=False)} if data == "loader" else {"datamodule": OnlyForFit()}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            evaluate(trainer(callback, alignment), stage, model, **settings)
        told = [str(warning.message) for warning in caught if "left out" in str(warning.message)]
        # A loader that is defined and cannot be made is said once, whatever the reason.
        assert len(told) == (0 if data == "loader" else 1)
        assert all("The training loader could not be made while evaluating (AttributeError" in text for text in told)
        assert_whole(callback, model, stage, samples(1), without=OF_TRAINING_MEANS)
        assert f"nc/{stage}/wm_cosine" in alignment.latest
        assert f"nc/{stage}/accuracy_centred_means" not in alignment.latest

    def test_a_split_that_nobody_asked_for(self, stage, mode):
        callback, model = NeuralCollapse(splits=["train", "test" if stage == "val" else "val"], mode=mode), Model()
        plain = Model()
        metrics = evaluate(trainer(callback), stage, model, dataloaders=loader(1, shuffle=False))
        evaluate(trainer(), stage, plain, dataloaders=loader(1, shuffle=False))
        assert callback.latest == {}
        assert not any(key.startswith("nc/") for key in metrics[0])
        assert model.forward_calls == plain.forward_calls

    def test_the_training_split_is_logged_where_it_is_asked_for(self, stage, mode):
        callback, model = NeuralCollapse(splits=["train", "val", "test"], mode=mode), WithTraining()
        evaluate(trainer(callback), stage, model, dataloaders=loader(1, shuffle=False))
        assert_whole(callback, model, "train", samples(0))
        assert_whole(callback, model, stage, samples(1))

    def test_the_model_is_left_as_it_was(self, stage, mode):
        def run(*callbacks):
            model = WithTraining().train()
            torch.manual_seed(4)
            evaluate(trainer(*callbacks), stage, model, dataloaders=loader(1, shuffle=False))
            return model.state_dict() | {"next": torch.rand(3)}

        plain = run()
        callbacks = [kind(splits=["val", "test"], mode=mode) for kind in (NeuralCollapse, FeatureSpectrum)]
        for name, tensor in run(*callbacks).items():
            assert torch.equal(tensor, plain[name]), name


def test_making_the_training_loader_draws_no_random_numbers_of_the_evaluation():
    class Drawing(Model):
        def train_dataloader(self):
            self.order = torch.randperm(80)
            return loader(0)

    def run(*callbacks):
        torch.manual_seed(4)
        trainer(*callbacks).validate(Drawing(), loader(1, shuffle=False), verbose=False)
        return torch.rand(3)

    assert torch.equal(run(), run(NeuralCollapse(splits=["val"])))


class TestAfterFit:
    @pytest.mark.parametrize("stage", ["val", "test"])
    def test_history_stays_and_latest_is_set(self, stage):
        callback, model = NeuralCollapse(splits=["train", "val", "test"]), Model()
        fit = trainer(callback, max_epochs=2)
        fit.fit(model, datamodule=Data())
        history = [dict(record) for record in callback.history]
        evaluate(fit, stage, model, datamodule=Data())
        assert [record["epoch"] for record in callback.history] == [0, 1]
        for before, after in zip(history, callback.history, strict=True):
            assert before.keys() == after.keys()
            assert before["nc/train/nc1"] == after["nc/train/nc1"]
        assert_whole(callback, model, stage, samples(1))
        assert f"nc/{'test' if stage == 'val' else 'val'}/nc1" not in callback.latest
        assert torch.is_tensor(callback.latest[f"nc/{stage}/class_mean_cosines"])

    def test_loaders_given_to_fit_are_not_those_of_the_evaluation(self):
        callback, model = NeuralCollapse(splits=["train", "test"]), Model()
        fit = trainer(callback)
        fit.fit(model, loader(0))
        assert "nc/train/nc4" in callback.latest
        fit.test(model, loader(1, shuffle=False), verbose=False)
        assert_whole(callback, model, "test", samples(1), without=OF_TRAINING_MEANS)

    def test_a_fit_after_an_evaluation(self):
        callback, model = NeuralCollapse(splits=["train", "val"]), Model()
        fit = trainer(callback)
        fit.validate(model, loader(1, shuffle=False), verbose=False)
        fit.fit(model, loader(0), loader(1))
        assert len(callback.history) == 1
        assert_whole(callback, model, "val", samples(1))
        assert_whole(callback, model, "train", samples(0))

    def test_hooks_of_online_are_gone(self):
        callback, model = NeuralCollapse(splits=["train", "val"], mode="online"), Model()
        fit = trainer(callback, max_epochs=2)
        fit.fit(model, datamodule=Data())
        of_fit = len(callback.history)
        fit.validate(model, datamodule=Data(), verbose=False)
        # Looks of an evaluation are passes of their own, with the model in eval mode on both splits.
        assert_whole(callback, model, "train", samples(0))
        assert_whole(callback, model, "val", samples(1))
        assert len(callback.history) == of_fit == 2
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class TestLoaders:
    @pytest.mark.parametrize("stage", ["val", "test"])
    def test_several(self, stage):
        class Several(Model):
            def validation_step(self, batch, batch_idx, dataloader_idx=0):
                self(batch[0])

            def train_dataloader(self):
                return loader(0)

        callback, model = NeuralCollapse(splits=["val", "test"]), Several()
        evaluate(trainer(callback), stage, model, dataloaders=[loader(1, shuffle=False), loader(2, shuffle=False)])
        for place, seed in enumerate((1, 2)):
            assert_whole(callback, model, stage, samples(seed), f"/dataloader_idx_{place}")

    @pytest.mark.parametrize("evaluation", ["fit", "val"])
    def test_transfer_hooks_know_which(self, evaluation):
        class Moves(WithTraining):
            def validation_step(self, batch, batch_idx, dataloader_idx=0):
                self(batch[0])

            def on_after_batch_transfer(self, batch, dataloader_idx):
                return [batch[0] + dataloader_idx, batch[1]]

        callback, model = NeuralCollapse(splits=["val"]), Moves()
        loaders = [loader(1, shuffle=False), loader(2, shuffle=False)]
        if evaluation == "fit":
            trainer(callback).fit(model, val_dataloaders=loaders)
        else:
            evaluate(trainer(callback), "val", model, dataloaders=loaders)
        for place in (0, 1):
            x, y = samples(1 + place)
            assert_whole(callback, model, "val", (x + place, y), f"/dataloader_idx_{place}")

    @pytest.mark.parametrize("stage", ["val", "test"])
    def test_limits(self, stage):
        callback, model = QuasiInterpolation(outputs="raw", splits=["val", "test"]), Model()
        fit = trainer(callback, limit_val_batches=2, limit_test_batches=2)
        evaluate(fit, stage, model, dataloaders=loader(1, shuffle=False))
        x, y = (part[:32] for part in samples(1))
        with torch.no_grad():
            outputs = model.double().eval()(x.double()).numpy()
        expected = reference.quasi_interpolation(outputs, y.numpy())["sqi_epsilon"]
        assert callback.latest[f"nc/{stage}/sqi_epsilon"] == pytest.approx(expected, rel=1e-4)


def test_predict_does_nothing():
    callback, model, plain = NeuralCollapse(splits=["train", "val", "test"]), WithTraining(), WithTraining()
    trainer(callback).predict(model, loader(1, shuffle=False))
    trainer().predict(plain, loader(1, shuffle=False))
    assert callback.latest == {}
    assert model.forward_calls == plain.forward_calls


@pytest.mark.parametrize("stage", ["val", "test"])
def test_outputs_are_those_that_fit_would_measure(stage):
    """Also without a fit, softmax outputs where the module holds a cross-entropy loss."""

    class WithLoss(Model):
        def __init__(self):
            super().__init__()
            self.loss = nn.CrossEntropyLoss()

    callback, model = QuasiInterpolation(splits=["val", "test"]), WithLoss()
    evaluate(trainer(callback), stage, model, dataloaders=loader(1, shuffle=False))
    assert callback.latest[f"nc/{stage}/sqi_ratio"] == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("stage", ["val", "test"])
def test_bad_input_is_refused_before_the_first_batch(stage):
    class Never(Model):
        def validation_step(self, batch, batch_idx):
            raise AssertionError("evaluation began")

        test_step = validation_step

    with pytest.raises(ValueError, match="head 'fc' is not a module of Never"):
        evaluate(trainer(NeuralCollapse(head="fc")), stage, Never(), dataloaders=loader(1))
    wrong = NeuralCollapse(splits=["val", "test"], batch_fn=lambda batch: (batch[0], batch[1][:-1]))
    with pytest.raises(ValueError, match=r"input of shape \(16, 8\) for targets of shape \(15,\)"):
        evaluate(trainer(wrong), stage, Never(), dataloaders=loader(1))
