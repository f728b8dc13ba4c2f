"""mode="online": which batches and samples count, and compiled models."""

import pytest
import torch
from torch import nn

from nc_callbacks import NeuralCollapse, QuasiInterpolation, WeightMeanAlignment
from tests.callbacks.common import Classifier, loader, samples, trainer
from tests.engine.online import Recording, assert_whole, online, whole


class TestBatches:
    def test_a_step_that_runs_the_head_twice(self):
        class Twice(Classifier):
            def training_step(self, batch, batch_idx):
                return super().training_step(batch, batch_idx) + super().training_step(batch, batch_idx)

        message = (
            r"Module 'head' ran 2 times in one forward pass.*With mode=\"epoch_end\" the features come from a pass"
        )
        with pytest.raises(ValueError, match=message):
            trainer(online()).fit(Twice(), loader())
        trainer(NeuralCollapse()).fit(Twice(), loader())

    def test_a_later_step_that_runs_the_head_twice_is_left_out(self):
        class Sometimes(Recording):
            def training_step(self, batch, batch_idx):
                if batch_idx == 3:
                    return nn.functional.cross_entropy(self(batch[0]) + self(batch[0]), batch[1])
                return super().training_step(batch, batch_idx)

        callback, model = online(), Sometimes()
        with pytest.warns(UserWarning, match=r"A train batch is left out of mode=\"online\".*ran 2 times") as warnings:
            trainer(callback, max_epochs=2).fit(model, loader())
        assert sum("left out of mode" in str(w.message) for w in warnings) == 1
        assert_whole(callback.latest, "train", model.train_rows[-1], model.train_rows[-1], model)

    @pytest.mark.parametrize(
        "skipped",
        [2, 0],
    )
    def test_a_batch_that_is_skipped(self, skipped):
        class Skipping(Recording):
            def training_step(self, batch, batch_idx):
                return None if batch_idx == skipped else super().training_step(batch, batch_idx)

        callback, model = online(), Skipping()
        trainer(callback).fit(model, loader())
        assert int(callback.latest["nc/train/counts"].sum()) == 64
        assert_whole(callback.latest, "train", model.train_rows[-1], model.train_rows[-1], model)

    def test_other_uses_of_the_model_between_batches_are_not_counted(self):
        class Peeking(Recording):
            def on_train_batch_end(self, outputs, batch, batch_idx):
                self.forward(batch[0])

            def on_validation_epoch_end(self):
                self.forward(torch.ones(2, 6))

        callback, model = online(splits=["train", "val"]), Peeking()
        trainer(callback).fit(model, loader(), loader(1))
        assert_whole(callback.latest, "train", model.train_rows[-1], model.train_rows[-1], model)

    @pytest.mark.parametrize(
        "kept",
        [
            0,
            1,
        ],
        ids=["a later batch", "the first batch too"],
    )
    def test_batches_that_batch_fn_leaves_out(self, kept):
        def batch_fn(batch):
            return batch[0], batch[1] if batch[1].sum() % 2 == kept else None

        callback, model = online(batch_fn=batch_fn), Recording()
        trainer(callback).fit(model, loader(shuffle=False))
        rows = [row for row in model.train_rows[-1] if row[2].sum() % 2 == kept]
        assert 0 < len(rows) < 5
        assert_whole(callback.latest, "train", rows, rows, model)

    def test_a_cache_too_small(self):
        settings = {"feature_cache": "1KiB", "splits": ["train", "val"]}
        callback, alignment, model = online(**settings), online(WeightMeanAlignment, **settings), Recording()
        with pytest.warns(UserWarning, match="do not fit in feature_cache, so that nc4, ncc_accuracy and") as warnings:
            trainer(callback, alignment, max_epochs=2).fit(model, loader(), loader(1))
        assert sum("feature_cache" in str(w.message) for w in warnings) == 1
        expected = whole(model.train_rows[-1], model.train_rows[-1], model)
        for split in ("train", "val"):
            assert not {f"nc/{split}/{name}" for name in ("nc4", "ncc_accuracy")} & callback.latest.keys()
            assert f"nc/{split}/accuracy_centred_means" not in alignment.latest
            assert f"nc/{split}/wm_cosine" in alignment.latest
        for name in expected.keys() - {"nc4", "ncc_accuracy"}:
            assert callback.latest[f"nc/train/{name}"] == pytest.approx(expected[name], rel=1e-5, abs=1e-7), name

    def test_samples_are_refused(self):
        with pytest.raises(ValueError, match='samples need mode="epoch_end"'):
            online(QuasiInterpolation, samples=[0])


class TestCompiled:
    def test_whole_model(self):
        compiled = torch.compile(Classifier(), backend="eager")
        with pytest.raises(ValueError, match=r"mode=\"online\" cannot see 'head'.*is compiled.*Or compile a part"):
            trainer(online()).fit(compiled, loader())

    def test_whole_model_in_place(self):
        model = Classifier()
        model.compile(backend="eager")
        for head in (None, "head"):
            with pytest.raises(ValueError, match=r"cannot see 'head': Classifier is compiled"):
                trainer(online(head=head)).fit(model, loader())

    @pytest.mark.parametrize("in_place", [False, True])
    def test_the_head(self, in_place):
        model = Classifier()
        if in_place:
            model.head.compile(backend="eager")
        else:
            model.head = torch.compile(model.head, backend="eager")
        with pytest.raises(ValueError, match=r"cannot see 'head': head is compiled.*Or compile a part that does not"):
            trainer(online()).fit(model, loader())

    def test_a_watched_layer(self):
        model = Classifier()
        model.body = torch.compile(model.body, backend="eager")
        with pytest.raises(ValueError, match=r"cannot see 'body.4': body is compiled"):
            trainer(online(layers=["body.4"])).fit(model, loader())

    @pytest.mark.parametrize("in_place", [False, True])
    def test_a_body_before_the_head_is_fine(self, in_place):
        model = Recording()
        if in_place:
            model.body.compile(backend="eager")
        else:
            model.body = torch.compile(model.body, backend="eager")
        callback = online()
        trainer(callback, max_epochs=2).fit(model, loader())
        assert int(callback.latest["nc/train/counts"].sum()) == len(samples()[0])
        assert_whole(callback.latest, "train", model.train_rows[-1], model.train_rows[-1], model)
