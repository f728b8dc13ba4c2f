"""mode="online": numbers of training's own forward passes, counted once, without a trace."""

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from nc_callbacks import FeatureSpectrum, QuasiInterpolation, WeightMeanAlignment
from tests import reference
from tests.callbacks.common import Classifier, K, loader, trainer
from tests.engine.online import Recording, assert_whole, hooks, online, whole


class TestNumbers:
    def test_train_and_val_of_each_epoch(self):
        callback, model = online(splits=["train", "val"]), Recording()
        trainer(callback, max_epochs=3, num_sanity_val_steps=0).fit(model, loader(), loader(1))
        assert len(callback.history) == 3
        for record, rows, val_rows in zip(callback.history, model.train_rows, model.val_rows, strict=True):
            # The weights are those at the end of the epoch, which only the last record's still are.
            final = whole(rows, rows, model)
            for name in ("nc1", "nc2_etf", "nc4", "ncc_accuracy", "accuracy"):
                assert record[f"nc/train/{name}"] == pytest.approx(final[name], rel=1e-5, abs=1e-7), name
            assert record["nc/val/nc1"] == pytest.approx(whole(val_rows, rows, model)["nc1"], rel=1e-5)
        assert_whole(callback.latest, "train", model.train_rows[-1], model.train_rows[-1], model)
        assert_whole(callback.latest, "val", model.val_rows[-1], model.train_rows[-1], model)

    def test_the_other_callbacks(self):
        model = Recording()
        alignment, errors, spectrum = (
            online(WeightMeanAlignment),
            online(QuasiInterpolation, outputs="raw"),
            online(FeatureSpectrum),
        )
        trainer(alignment, errors, spectrum, max_epochs=2).fit(model, loader())
        features, outputs, targets = (np.concatenate(part) for part in zip(*model.train_rows[-1], strict=True))
        targets = targets.astype(int)
        m = reference.centred(reference.moments(features, targets, K).means)
        weight = model.head.weight.detach().double().numpy()
        cosine = reference.wm_cosine(weight, reference.moments(features, targets, K).means).mean()
        assert alignment.latest["nc/train/wm_cosine"] == pytest.approx(cosine, rel=1e-5)
        centred_means = np.mean((features @ m.T).argmax(1) == targets)
        assert alignment.latest["nc/train/accuracy_centred_means"] == pytest.approx(centred_means)
        for name, value in reference.quasi_interpolation(outputs, targets).items():
            assert errors.latest[f"nc/train/{name}"] == pytest.approx(value, rel=1e-4, abs=1e-6), name
        shares = np.linalg.svd(features)[1] ** 2 / np.sum(features**2)
        np.testing.assert_allclose(spectrum.latest["nc/train/explained_variance"], shares, rtol=1e-4, atol=1e-6)

    def test_a_further_layer(self):
        class Model(Recording):
            def features(self, x):
                self.hidden = self.body[:4](x)
                return self.body[4:](self.hidden)

            def keep(self, rows, batch, outputs):
                rows[-1].append([self.hidden.detach().clone().double().numpy(), batch[1].numpy()])

        callback, model = online(layers=["body.4"]), Model()
        trainer(callback).fit(model, loader())
        features, targets = (np.concatenate(part) for part in zip(*model.train_rows[-1], strict=True))
        moments = reference.moments(features, targets, K)
        expected = reference.nc1(moments.within, moments.means)
        assert callback.latest["nc/train/body.4/nc1"] == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize(
        "settings", [{"accumulate_grad_batches": 3}, {"gradient_clip_val": 0.1}, {"limit_train_batches": 3}]
    )
    def test_each_batch_counts_once(self, settings):
        callback, model = online(), Recording()
        trainer(callback, max_epochs=2, **settings).fit(model, loader())
        assert_whole(callback.latest, "train", model.train_rows[-1], model.train_rows[-1], model)

    @pytest.mark.parametrize("use_reentrant", [True, False])
    @pytest.mark.parametrize("all_of_it", [False, True], ids=["the body", "body and head"])
    def test_activation_checkpointing_counts_once(self, use_reentrant, all_of_it):
        class Checkpointed(Recording):
            def forward(self, x):
                x = x.clone().requires_grad_()
                if not all_of_it:
                    self.last = checkpoint(self.body, x, use_reentrant=use_reentrant)
                    return self.head(self.last)

                def run(x):
                    self.last = self.body(x)
                    return self.head(self.last)

                return checkpoint(run, x, use_reentrant=use_reentrant)

        callback, model = online(layers=["body.4"]), Checkpointed()
        trainer(callback, max_epochs=2).fit(model, loader())
        assert_whole(callback.latest, "train", model.train_rows[-1], model.train_rows[-1], model)
        assert callback.latest["nc/train/body.4/ncc_accuracy"] > 0

    @pytest.mark.parametrize("settings", [{"val_check_interval": 0.5}, {"check_val_every_n_epoch": 2}])
    def test_the_last_validation_pass_of_the_epoch_counts(self, settings):
        callback, model = online(splits=["train", "val"]), Recording()
        trainer(callback, max_epochs=2, num_sanity_val_steps=0, **settings).fit(model, loader(), loader(1))
        assert len(model.val_rows) == (1 if "check_val_every_n_epoch" in settings else 4)
        assert_whole(callback.latest, "train", model.train_rows[-1], model.train_rows[-1], model)
        assert_whole(callback.latest, "val", model.val_rows[-1], model.train_rows[-1], model)

    def test_an_epoch_without_validation_says_nothing_of_it(self, recwarn):
        callback = online(splits=["train", "val"])
        trainer(callback, max_epochs=2, check_val_every_n_epoch=2).fit(Recording(), loader(), loader(1))
        assert ["nc/val/nc1" in record for record in callback.history] == [False, True]
        assert not any("head=" in str(w.message) or "compute" in str(w.message) for w in recwarn)

    def test_sanity_checking_is_not_counted(self):
        callback, model = online(splits=["val"]), Recording()
        trainer(callback, num_sanity_val_steps=2, check_val_every_n_epoch=2).fit(model, loader(), loader(1))
        assert len(model.val_rows) == 1
        assert not any(key.startswith("nc/val/nc") for key in callback.latest)

    def test_several_validation_loaders(self):
        class Split(Recording):
            def validation_step(self, batch, batch_idx, dataloader_idx=0):
                outputs = self(batch[0])
                self.keep([self.second if dataloader_idx else self.first], batch, outputs)

            first, second = [], []

        callback, model = online(splits=["train", "val"]), Split()
        trainer(callback, num_sanity_val_steps=0).fit(model, loader(), [loader(1), loader(2)])
        for place, rows in enumerate((model.first, model.second)):
            expected = whole(rows, model.train_rows[-1], model)
            for name, value in expected.items():
                found = callback.latest[f"nc/val/{name}/dataloader_idx_{place}"]
                assert found == pytest.approx(value, rel=1e-5, abs=1e-7), name


class TestNoPassIsAdded:
    def test_forward_calls(self):
        plain, watched = Classifier(), Classifier()
        for model, callbacks in ((plain, []), (watched, [online(), online(WeightMeanAlignment), online(prefix="b")])):
            trainer(*callbacks, max_epochs=3).fit(model, loader(), loader(1))
        # Before the first epoch four runs find the classifier, and one tries the set-up; each look runs one batch.
        assert watched.forward_calls == plain.forward_calls + 5 + 3

    def test_callbacks_share_one_stream(self):
        class Counting(Classifier):
            def on_train_batch_start(self, batch, batch_idx):
                self.hooked = hooks(self)

        model = Counting()
        named = online(WeightMeanAlignment, head="head", a2_residual=True)
        callbacks = [online(), named, online(prefix="third", splits=["val"])]
        trainer(*callbacks).fit(model, loader(), loader(1))
        assert model.hooked == 2
        assert "nc/train/a2_residual" in callbacks[1].latest
        assert callbacks[0].latest["nc/train/accuracy"] == callbacks[1].latest["nc/train/accuracy"]
        assert "third/val/nc1" in callbacks[2].latest

    @pytest.mark.parametrize("schedule", [{"every_n_epochs": 2}, {"epochs": [1, 3]}])
    def test_hooks_only_in_epochs_that_are_due(self, schedule):
        class Counting(Classifier):
            def __init__(self):
                super().__init__()
                self.hooked = []

            def training_step(self, batch, batch_idx):
                if batch_idx == 0:
                    self.hooked.append(hooks(self) > 0)
                return super().training_step(batch, batch_idx)

        callback, model = online(**schedule), Counting()
        trainer(callback, max_epochs=4).fit(model, loader())
        assert model.hooked == [False, True, False, True]
        assert [record["epoch"] for record in callback.history] == [1, 3]
        assert hooks(model) == 0

    def test_no_hooks_stay_after_an_exception(self):
        class Failing(Classifier):
            def training_step(self, batch, batch_idx):
                if batch_idx == 2:
                    raise RuntimeError("in training")
                return super().training_step(batch, batch_idx)

        model = Failing()
        with pytest.raises(RuntimeError, match="in training"):
            trainer(online()).fit(model, loader())
        assert hooks(model) == 0

    def test_an_epoch_that_ends_early(self):
        callback, model = online(), Recording()
        trainer(callback, max_epochs=None, max_steps=8).fit(model, loader())
        assert hooks(model) == 0
        assert [len(rows) for rows in model.train_rows] == [5, 3]
        assert_whole(callback.latest, "train", model.train_rows[-1], model.train_rows[-1], model)

    def test_weights_are_bit_identical(self):
        def run(*callbacks):
            model = Classifier()
            torch.manual_seed(3)
            trainer(*callbacks, max_epochs=3).fit(model, loader(), loader(1))
            return model.state_dict() | {"next": torch.rand(3)}

        plain = run()
        watched = run(online(splits=["train", "val"], layers=["body.4"]), online(WeightMeanAlignment))
        for name, tensor in plain.items():
            assert torch.equal(tensor, watched[name]), name
