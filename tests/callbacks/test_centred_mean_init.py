"""The callback that starts a model's own classifier at the centred class means."""

import copy

import lightning as L
import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from nc_callbacks import CentredMeanInit
from tests.callbacks.common import Classifier, K, loader, samples, trainer
from tests.transfer.test_head import expected_weight


class Recorded(Classifier):
    """Keeps the classifier as it is before the first step."""

    def on_train_batch_start(self, batch, batch_idx):
        if not hasattr(self, "first_weight"):
            self.first_weight = self.head.weight.detach().clone()
            self.first_bias = self.head.bias.detach().clone()


def start_of(model):
    """M̄ of the untrained model's features in eval mode, in float64 from its definition."""
    x, y = samples()
    with torch.no_grad():
        return expected_weight(model.body.eval()(x), y, classes=range(K))


@pytest.mark.parametrize("head", [None, "head"])
def test_starts_at_the_class_means(head):
    expected = start_of(Classifier())
    model, callback = Recorded(), CentredMeanInit(head=head, scale=2.0)
    trainer(callback).fit(model, loader())
    np.testing.assert_allclose(model.first_weight, 2 * expected, rtol=1e-4, atol=1e-5)
    assert not model.first_bias.any()
    assert callback.scale == 2.0
    assert not torch.equal(model.head.weight, model.first_weight)


def test_fitted_scale_gives_the_least_first_loss():
    x, y = samples()
    model, callback = Recorded(), CentredMeanInit()
    with torch.no_grad():
        features = Classifier().body.eval()(x).double()
    trainer(callback).fit(model, loader())
    losses = [
        nn.functional.cross_entropy(factor * features @ model.first_weight.double().T, y).item()
        for factor in (0.99, 1.0, 1.01)
    ]
    assert losses[1] == min(losses)


def test_one_pass_that_disturbs_nothing():
    class Watched(Recorded):
        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 0 and self.current_epoch == 0:
                self.calls_before, self.modes = self.forward_calls, [m.training for m in self.modules()]
                self.norm = {name: value.clone() for name, value in self.body.named_buffers()}
                self.random = torch.get_rng_state()

    plain, started = Watched(), Watched()
    for model, callbacks in ((plain, []), (started, [CentredMeanInit(head="head")])):
        L.seed_everything(3, verbose=False)
        trainer(*callbacks).fit(model, loader())
    # Three calls hold the classifier to its contract.
    assert started.calls_before - plain.calls_before == 3 + len(loader())
    assert started.modes == plain.modes
    assert torch.equal(started.random, plain.random)
    assert all(torch.equal(value, plain.norm[name]) for name, value in started.norm.items())


@pytest.mark.parametrize("limit", [2, 0.4])
def test_keeps_to_the_trainers_limit(limit):
    model = Recorded()
    trainer(CentredMeanInit(head="head"), limit_train_batches=limit).fit(model, loader())
    assert model.forward_calls == 3 + 2 * 2


class Frozen(Recorded):
    """Notes what is trained, and which modules are in train mode, at each batch."""

    def __init__(self):
        super().__init__()
        self.trained, self.in_train_mode = set(), set()

    def on_train_batch_start(self, batch, batch_idx):
        super().on_train_batch_start(batch, batch_idx)
        self.trained |= {name for name, p in self.named_parameters() if p.requires_grad}
        self.in_train_mode |= {name for name, module in self.named_modules() if module.training}


def assert_released(model):
    """As a new model, but for one parameter and one module that were still before."""
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["body.0.bias"]
    assert [name for name, module in model.named_modules() if not module.training] == ["body.3"]


def still(model):
    model.body[0].bias.requires_grad_(False)
    model.body[3].eval()
    return model


def test_freeze_backbone_trains_the_head_on_features_that_stay():
    model = Frozen()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, _ = samples()
    features = model.body.eval()(x)
    still(model.train())
    trainer(CentredMeanInit(head="head", freeze_backbone=True), max_epochs=2).fit(model, loader(), loader(1))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (not name.startswith("head")), name
    assert model.trained == {"head.weight", "head.bias"}
    assert model.in_train_mode == {"", "head"}
    assert_released(model)
    assert torch.equal(model.body.eval()(x), features)


def test_freeze_backbone_holds_where_the_model_goes_back_to_train_mode():
    class Back(Frozen):
        def on_train_epoch_end(self):
            self.train()

    model = Back()
    before = copy.deepcopy(model.body.state_dict())
    trainer(CentredMeanInit(head="head", freeze_backbone=True), max_epochs=2).fit(model, loader())
    torch.testing.assert_close(model.body.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("hook", ["on_fit_start", "on_train_start", "training_step", "validation_step"])
def test_freeze_backbone_is_undone_after_an_exception(hook):
    class Broken(Frozen):
        pass

    def fail(self, *_):
        raise RuntimeError("broken off")

    setattr(Broken, hook, fail)
    model, callback = still(Broken()), CentredMeanInit(head="head", freeze_backbone=True)
    with pytest.raises(RuntimeError, match="broken off"):
        trainer(callback, num_sanity_val_steps=0).fit(model, loader(), loader(1))
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["body.0.bias"]
    if hook != "validation_step":  # in which Lightning itself leaves all modules in eval mode
        assert_released(model)


def test_freeze_backbone_holds_from_the_first_batch_of_a_fit_that_resumes_within_an_epoch(tmp_path):
    class SaveWithin(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 2:
                trainer.save_checkpoint(tmp_path / "within.ckpt")

    trainer(CentredMeanInit(head="head", freeze_backbone=True), SaveWithin()).fit(Frozen(), loader())
    model = Frozen()
    trainer(CentredMeanInit(head="head", freeze_backbone=True)).fit(model, loader(), ckpt_path=tmp_path / "within.ckpt")
    saved = torch.load(tmp_path / "within.ckpt", weights_only=True)["state_dict"]
    assert 0 < model.forward_calls < len(loader())
    assert model.trained == {"head.weight", "head.bias"}
    assert model.in_train_mode == {"", "head"}
    for name, value in model.state_dict().items():
        assert torch.equal(value, saved[name]) == (not name.startswith("head")), name


def test_not_again_on_resume(tmp_path):
    callback = CentredMeanInit(head="head")
    first = trainer(callback, max_epochs=2)
    first.fit(Recorded(), loader())
    first.save_checkpoint(tmp_path / "a.ckpt")
    resumed, again = Recorded(), CentredMeanInit(head="head")
    trainer(again, max_epochs=3).fit(resumed, loader(), ckpt_path=tmp_path / "a.ckpt")
    assert torch.equal(
        resumed.first_weight, torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]["head.weight"]
    )
    assert again.scale == callback.scale
    # Nor where the checkpoint is of a run without the callback, nor where the trainer goes on.
    without = trainer(max_epochs=1)
    without.fit(Recorded(), loader())
    without.save_checkpoint(tmp_path / "b.ckpt")
    late, callback = Recorded(), CentredMeanInit(head="head")
    trainer(callback, max_epochs=2).fit(late, loader(), ckpt_path=tmp_path / "b.ckpt")
    assert callback.scale is None
    # But a new fit of another trainer starts anew.
    fresh = Recorded()
    trainer(again).fit(fresh, loader())
    assert again.scale is not None
    assert not torch.equal(fresh.first_weight, Classifier().head.weight)


def test_a_checkpoint_from_before_the_first_step_counts_too(tmp_path):
    class Save(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            trainer.save_checkpoint(tmp_path / "first.ckpt")

    trainer(CentredMeanInit(head="head"), Save(), max_steps=1).fit(Recorded(), loader())
    model = Recorded()
    fit = trainer(CentredMeanInit(head="head"), max_epochs=2)
    fit.fit(model, loader(), ckpt_path=tmp_path / "first.ckpt")
    assert model.forward_calls < 3 * len(loader())


def test_convolutional_classifier_and_absent_class():
    class Convolutional(Recorded):
        def __init__(self):
            super().__init__()
            self.head = nn.Conv2d(8, K + 1, 1)

        def forward(self, x):
            return self.head(self.body(x)[:, :, None, None]).flatten(1)

    model = Convolutional()
    expected = start_of(model)
    with pytest.warns(UserWarning, match="No sample has class 4"):
        trainer(CentredMeanInit(scale=1.0)).fit(model, loader())
    assert model.first_weight.shape == (K + 1, 8, 1, 1)
    np.testing.assert_allclose(model.first_weight[:K].flatten(1), expected, rtol=1e-4, atol=1e-5)
    assert not model.first_weight[K].any()


@pytest.fixture
def process_group_of_two(monkeypatch):
    """This process is one of two, the other of which never answers."""
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    for name in ("all_reduce", "all_gather", "all_gather_object", "broadcast", "barrier"):
        monkeypatch.setattr(dist, name, lambda *_, name=name, **__: pytest.fail(f"{name} waits for the other process"))
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("scale", ["fit", 2.0])
def test_trainer_of_one_process_in_a_process_group_of_two(process_group_of_two, scale):
    expected = start_of(Classifier())
    model, callback = Recorded(), CentredMeanInit(head="head", scale=scale)
    trainer(callback, devices=1).fit(model, loader())
    np.testing.assert_allclose(model.first_weight, callback.scale * expected, rtol=1e-4, atol=1e-5)
