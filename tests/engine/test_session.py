"""What the callbacks of one trainer share: equal keys, one budget, passes that nobody asked for, monitors."""

import inspect

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn
from torch.nn import functional as F

from nc_callbacks import CentredMeanInit, FeatureSpectrum, NeuralCollapse, QuasiInterpolation, WeightMeanAlignment
from nc_callbacks.engine.request import DEFAULT_CACHE, LayerNeeds, Needs
from nc_callbacks.engine.session import session_of
from tests.callbacks.common import Classifier, loader, trainer

BATCHES = 5
ALL = (NeuralCollapse, WeightMeanAlignment, QuasiInterpolation, FeatureSpectrum)


class TwoHeads(Classifier):
    def __init__(self):
        super().__init__()
        self.other = nn.Linear(8, 4)

    def forward(self, x):
        h = self.body(x)
        return {"logits": self.head(h), "other": self.other(h)}

    def training_step(self, batch, batch_idx):
        outputs = self(batch[0])
        return F.cross_entropy(outputs["logits"], batch[1]) + F.cross_entropy(outputs["other"], batch[1])


class TestEqualKeys:
    """Loggers and monitors would see the mean of two values."""

    @pytest.mark.parametrize(
        "callbacks",
        [
            lambda: [NeuralCollapse(head="head"), NeuralCollapse(head="other")],
            lambda: [NeuralCollapse(head="head"), WeightMeanAlignment(head="other")],
            lambda: [NeuralCollapse(), NeuralCollapse(mode="online")],
            lambda: [NeuralCollapse(), WeightMeanAlignment(mode="online")],
            lambda: [NeuralCollapse(), NeuralCollapse(global_mean="samples")],
            lambda: [FeatureSpectrum(), FeatureSpectrum(centred=True, layers=["body.4"])],
            lambda: [QuasiInterpolation(outputs="raw"), QuasiInterpolation(outputs="softmax", layers=["body.4"])],
            lambda: [NeuralCollapse(batch_fn=lambda batch: batch), WeightMeanAlignment()],
        ],
    )
    def test_different_values_are_refused_in_setup(self, callbacks):
        with pytest.raises(ValueError, match=r"would log different values under the same keys.*prefix=\"nc2\""):
            trainer(*callbacks()).fit(TwoHeads(), loader())

    def test_heads_that_turn_out_different_are_refused_before_training(self):
        steps = []

        class Steps(TwoHeads):
            def training_step(self, batch, batch_idx):
                steps.append(batch_idx)
                return super().training_step(batch, batch_idx)

        with pytest.raises(ValueError, match="would log different values"):
            trainer(NeuralCollapse(head="other"), WeightMeanAlignment()).fit(Steps(), loader())
        assert steps == []

    @pytest.mark.parametrize(
        "callbacks",
        [
            lambda: [NeuralCollapse(head="head"), NeuralCollapse(head="other", prefix="other")],
            lambda: [NeuralCollapse(head="head"), WeightMeanAlignment()],
            lambda: [NeuralCollapse(), NeuralCollapse(layers=["body.4"], every_n_epochs=2)],
            lambda: [NeuralCollapse(head="head"), FeatureSpectrum(head="other")],
        ],
    )
    def test_equal_values_and_other_prefixes_are_taken(self, callbacks):
        first, second = callbacks()
        fit = trainer(first, second, max_epochs=2)
        fit.fit(TwoHeads(), loader())
        for callback in (first, second):
            for key, value in callback.latest.items():
                if isinstance(value, float):
                    assert float(fit.callback_metrics[key]) == pytest.approx(value, rel=1e-5), key


class TestPasses:
    @pytest.mark.parametrize(
        ("kind", "second"),
        [(QuasiInterpolation, 0), (FeatureSpectrum, 0), (WeightMeanAlignment, 1), (NeuralCollapse, 1)],
    )
    def test_only_what_needs_the_class_means_makes_a_second_pass(self, kind, second):
        model = Classifier()
        trainer(kind(head="head", feature_cache=0)).fit(model, loader())
        assert model.looks == 5 + BATCHES * (1 + second)

    def test_nothing_is_kept_for_those_that_need_no_class_means(self):
        kept = []

        class Model(Classifier):
            def forward(self, x):
                return super().forward(x)

        class Spy(FeatureSpectrum):
            def measure(self, observation):
                kept.append((observation.nearest_mean_accuracy, observation.classifier.accuracy))
                return super().measure(observation)

        trainer(Spy()).fit(Model(), loader())
        assert kept == [(None, None)]

    def test_layers_are_decided_where_they_are_asked_for(self):
        seen = {}

        class Spy(NeuralCollapse):
            def measure(self, observation):
                seen[observation.layer] = observation.nearest_mean_accuracy
                return super().measure(observation)

        trainer(Spy(layers=["body.4"]), FeatureSpectrum(layers=["body.0", "body.4"])).fit(Classifier(), loader())
        assert seen["head"] is not None
        assert seen["body.4"] is not None


class TestBudget:
    def looks(self, *caches, splits=("train",)):
        model = Classifier()
        callbacks = [
            kind(head="head", feature_cache=cache, splits=splits)
            for kind, cache in zip((NeuralCollapse, WeightMeanAlignment), caches, strict=False)
        ]
        trainer(*callbacks, num_sanity_val_steps=0, limit_val_batches=1.0).fit(model, loader(), loader(1))
        return model.looks

    def test_the_smallest_that_is_given_counts(self):
        validation = BATCHES  # the trainer's own
        tried = 5
        assert self.looks("1MiB", None) == tried + validation + BATCHES
        assert self.looks(None, 0) == tried + validation + 2 * BATCHES
        assert self.looks("1MiB", 0) == tried + validation + 2 * BATCHES

    def test_it_is_of_the_trainer_whatever_the_splits(self):
        """Room for one split's 80 samples of 8 features, 4 outputs and a target: enough for each in turn."""
        room = 80 * (8 * 4 + 4 * 4 + 8)
        assert self.looks(room, splits=("train", "val")) == 6 + BATCHES + 2 * BATCHES
        assert self.looks(room - 1, splits=("train", "val")) == 6 + BATCHES + 4 * BATCHES

    def test_default(self):
        class Spy(NeuralCollapse):
            def on_train_epoch_end(self, trainer, pl_module):
                look = session_of(trainer)._look(trainer, pl_module, self.watch.source, [self.watch])
                assert look.request.cache_bytes == DEFAULT_CACHE
                super().on_train_epoch_end(trainer, pl_module)

        trainer(Spy()).fit(Classifier(), loader())


def test_needs_add_up():
    one = Needs(LayerNeeds("pooled"), {"a": LayerNeeds("none", nearest_mean=True)}, accuracy=True)
    other = Needs(LayerNeeds("none"), {"a": LayerNeeds("per_class"), "b": LayerNeeds()}, errors=frozenset({"raw"}))
    both = one | other
    assert both.head == LayerNeeds("pooled")
    assert both.layers == {"a": LayerNeeds("per_class", nearest_mean=True), "b": LayerNeeds()}
    assert (both.accuracy, both.errors, both.decisions) == (True, {"raw"}, True)
    assert not other.decisions
    # A layer that is the classifier's own input is watched once, for both.
    assert Needs(LayerNeeds("pooled"), {"fc": LayerNeeds(nearest_mean=True)}).at("fc", "fc") == LayerNeeds(
        "pooled", nearest_mean=True
    )


class TestArguments:
    @pytest.mark.parametrize("kind", ALL)
    def test_shared_ones_are_spelt_out(self, kind):
        parameters = inspect.signature(kind).parameters
        shared = list(inspect.signature(NeuralCollapse.__mro__[1].__init__).parameters)[1:]
        assert "every_n_epochs" in shared
        assert set(shared) <= set(parameters)
        assert not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())

    @pytest.mark.parametrize("kind", ALL)
    def test_given_by_name_they_arrive(self, kind):
        given = {"head": "a", "layers": ("b",), "splits": ("val",), "mode": "online", "prefix": "x", "figures": "f"}
        callback = kind(every_n_epochs=3, feature_cache=7, pool="mean", global_mean="samples", ignore_index=5, **given)
        assert callback.given.head == "a"
        assert (callback.given.pool, callback.given.ignore_index, callback.given.online) == ("mean", 5, True)
        assert (callback.layers, callback.splits, callback.prefix, callback.figures) == (("b",), ("val",), "x", "f")
        assert (callback.schedule.every_n_epochs, callback.cache_bytes, callback.global_mean) == (3, 7, "samples")

    @pytest.mark.parametrize("kind", [*ALL, CentredMeanInit])
    def test_a_misspelt_one_names_the_nearest(self, kind):
        with pytest.raises(TypeError, match=rf"{kind.__name__} has no argument 'haed'; did you mean 'head'\?"):
            kind(haed="fc")


class Plateau(Classifier):
    def __init__(self, key="nc/train/nc1"):
        super().__init__()
        self.key = key

    def training_step(self, batch, batch_idx):
        self.log("train_loss", 1.0)
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        self.schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=1e9)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.schedule, "monitor": self.key},
        }


class TestPlateau:
    def test_it_steps_where_a_look_has_come(self):
        model = Plateau()
        trainer(NeuralCollapse(every_n_epochs=2), max_epochs=6).fit(model, loader())
        # No look is an improvement by so much: each of the three is a step down.
        assert model.schedule.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.1**3)
        assert model.schedule.last_epoch == 3

    def test_a_look_that_failed_is_no_step(self):
        class Fails(NeuralCollapse):
            def measure(self, observation):
                raise ArithmeticError("no number")

        model = Plateau()
        with pytest.warns(UserWarning, match="no number"):
            trainer(Fails(), max_epochs=3).fit(model, loader())
        assert model.schedule.last_epoch == 0

    def test_it_is_left_as_it_was(self):
        model, fit = Plateau(), trainer(NeuralCollapse(), max_epochs=1)
        fit.fit(model, loader())
        assert fit.lr_scheduler_configs[0].frequency == 1

    def test_one_of_another_key_is_left_alone(self):
        model = Plateau("train_loss")
        trainer(NeuralCollapse(every_n_epochs=5), max_epochs=4).fit(model, loader())
        assert model.schedule.last_epoch == 4


def test_monitors_are_put_back(tmp_path):
    """All that is set on them while a fit runs."""
    stopping = EarlyStopping("nc/train/nc1", patience=20)
    saving = ModelCheckpoint(tmp_path, monitor="nc/train/nc1", save_on_train_epoch_end=False)
    fresh = vars(EarlyStopping("nc/train/nc1", patience=20))
    trainer(NeuralCollapse(), stopping, saving, enable_checkpointing=True).fit(Classifier(), loader())
    assert stopping._check_on_train_epoch_end in (fresh["_check_on_train_epoch_end"], True)
    assert "_should_skip_check" not in vars(stopping)
    assert saving._save_on_train_epoch_end is False
    assert "_should_skip_saving_checkpoint" not in vars(saving)
