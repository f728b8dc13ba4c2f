"""The same numbers in any trainer: precisions, accumulation, limits, validation wherever it falls."""

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nc_callbacks import NeuralCollapse
from nc_callbacks.engine.passes import _through
from tests import reference
from tests.callbacks.common import Classifier, K, loader, samples, trainer, whole_set


@pytest.mark.parametrize(
    ("settings", "epochs"),
    [
        ({"accumulate_grad_batches": 3}, [0, 1, 2]),
        ({"gradient_clip_val": 0.1}, [0, 1, 2]),
        ({"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}, [0, 1, 2]),
        ({"val_check_interval": 0.5}, [0, 1, 2]),
        ({"val_check_interval": 2}, [0, 1, 2]),
        ({"check_val_every_n_epoch": 2}, [0, 1, 2]),
        ({"reload_dataloaders_every_n_epochs": 1}, [0, 1, 2]),
        ({"num_sanity_val_steps": 2}, [0, 1, 2]),
        ({"max_epochs": -1, "max_steps": 15}, [0, 1, 2]),
        ({"deterministic": True, "benchmark": False}, [0, 1, 2]),
        ({"inference_mode": False}, [0, 1, 2]),
        ({"barebones": True}, [0, 1, 2]),
        ({"detect_anomaly": True}, [0, 1, 2]),
    ],
    ids=lambda value: ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_settings_of_the_trainer(settings, epochs):
    callback, model = NeuralCollapse(splits=["train", "val"]), Classifier()
    if settings.get("barebones"):
        settings = settings | {"enable_checkpointing": None, "logger": None, "enable_model_summary": None}
        settings["enable_progress_bar"] = None
    fit = trainer(callback, **({"max_epochs": 3} | settings))
    fit.fit(model, loader(0), loader(1))
    assert [record["epoch"] for record in callback.history] == epochs
    for split, seed in (("train", 0), ("val", 1)):
        for name, value in whole_set(model, samples(seed), samples(0)).items():
            assert callback.latest[f"nc/{split}/{name}"] == pytest.approx(value, rel=1e-5, abs=1e-7), (split, name)


@pytest.mark.parametrize(
    ("settings", "train", "val"),
    [
        ({"limit_train_batches": 2}, 32, 80),
        ({"limit_train_batches": 0.4}, 32, 80),
        ({"limit_train_batches": 1}, 16, 80),
        ({"limit_val_batches": 2}, 80, 32),
        ({"overfit_batches": 2}, 32, 32),
        ({"fast_dev_run": 2}, 32, 32),
    ],
)
def test_limits_of_the_trainer(settings, train, val):
    callback, model = NeuralCollapse(splits=["train", "val"]), Classifier()
    trainer(callback, **settings).fit(model, loader(0), loader(1, shuffle=False))
    assert int(callback.latest["nc/train/counts"].sum()) == train
    assert int(callback.latest["nc/val/counts"].sum()) == val
    (x, y), (val_x, val_y) = samples(0), samples(1)
    first = (x[:train], y[:train])
    for split, data in (("train", first), ("val", (val_x[:val], val_y[:val]))):
        if set(data[1].tolist()) == set(range(K)) == set(first[1].tolist()):
            for name, value in whole_set(model, data, first).items():
                assert callback.latest[f"nc/{split}/{name}"] == pytest.approx(value, rel=1e-5, abs=1e-7), (split, name)


def test_nothing_is_measured_in_the_sanity_check_or_without_training_batches():
    callback = NeuralCollapse(splits=["train", "val"])
    trainer(callback, num_sanity_val_steps=2, limit_train_batches=0).fit(Classifier(), loader(0), loader(1))
    assert callback.history == []


# In half precision the means of this data are known to few digits.
@pytest.mark.filterwarnings("ignore:nc1 is known to")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "64-true"])
@pytest.mark.parametrize("mode", ["epoch_end", "online"])
def test_precisions(precision, mode):
    callback, model = NeuralCollapse(mode=mode, splits=["val"]), Classifier()
    fit = trainer(callback, precision=precision, max_epochs=2, num_sanity_val_steps=0)
    fit.fit(model, loader(0), loader(1, shuffle=False))
    x, y = samples(1)
    features = []
    model.eval()
    # In the trainer's own precision, batch by batch: only what is done with the features is in float64.
    with torch.no_grad(), fit.precision_plugin.val_step_context():
        for part in fit.precision_plugin.convert_input(x).split(16):
            features.append(model.body(part).double())
    moments = reference.moments(torch.cat(features).numpy(), y.numpy(), K)
    weight = model.head.weight.detach().double().numpy()
    expected = {
        "nc1": reference.nc1(moments.within, moments.means),
        "nc1_cdnv": reference.nc1_cdnv(moments.traces, moments.means),
        "nc2_etf": reference.nc2_etf(reference.centred(moments.means)),
        "nc2_etf_weights": reference.nc2_etf(weight),
        "nc3": reference.nc3(weight, moments.means),
    }
    for name, value in expected.items():
        assert callback.latest[f"nc/val/{name}"] == pytest.approx(value, rel=1e-5), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
# In half precision the means of this data are known to few digits.
@pytest.mark.filterwarnings("ignore:nc1 is known to")
@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
def test_on_a_gpu(precision):
    callback, model = NeuralCollapse(splits=["train", "val"]), Classifier()
    trainer(callback, accelerator="gpu", devices=1, precision=precision, max_epochs=2).fit(model, loader(0), loader(1))
    tolerance = 1e-5 if precision == "32-true" else 5e-2
    expected = whole_set(model.cpu(), samples(0), samples(0))
    assert callback.latest["nc/train/nc1"] == pytest.approx(expected["nc1"], rel=tolerance)
    assert callback.latest["nc/train/nc3"] == pytest.approx(expected["nc3"], rel=tolerance)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch's FullyShardedDataParallel needs a GPU")
def test_fsdp_strategy():
    callback, model = NeuralCollapse(), Classifier()
    fit = trainer(callback, accelerator="gpu", devices=1, strategy=FSDPStrategy(auto_wrap_policy={nn.Linear}))
    fit.fit(model, loader())
    assert callback.head == "head"
    assert int(callback.latest["nc/train/counts"].sum()) == 80


def test_a_model_is_called_through_its_wrapper():
    calls = []

    class Wrapper(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            calls.append(len(x))
            return self.inner.forward(x)

    model, x = Classifier().eval(), samples()[0]
    expected = model(x)
    through = _through(Wrapper(model), model, lambda module, inputs: module(inputs), x)
    assert torch.equal(through, expected)
    assert calls == [80]
    assert "forward" not in vars(model)

    def failing(module, inputs):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        _through(Wrapper(model), model, failing, x)
    assert "forward" not in vars(model)


@pytest.mark.parametrize("what", ["body", "head", "module", "whole"])
def test_compiled_models_give_the_eager_numbers(what):
    class Quiet(Classifier):
        def forward(self, x):
            return self.head(self.body(x))

    model = Quiet()
    watched = model
    if what == "whole":
        watched = torch.compile(model, backend="eager")
    elif what == "module":
        model.compile(backend="eager")
    else:
        setattr(model, what, torch.compile(getattr(model, what), backend="eager"))
    # A validation_step that logs does not compile as a whole in torch 2.6.
    seeds = {"train": 0} if what == "whole" else {"train": 0, "val": 1}
    callback = NeuralCollapse(splits=list(seeds), layers=["body.4"])
    trainer(callback, max_epochs=2).fit(watched, *(loader(seed) for seed in seeds.values()))
    assert callback.head == "head"
    for split, seed in seeds.items():
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            model.eval()
            features = model.body(samples(seed)[0]).double().numpy()
        moments = reference.moments(features, samples(seed)[1].numpy(), K)
        weight = model.head.weight.detach().double().numpy()
        assert callback.latest[f"nc/{split}/nc1"] == pytest.approx(
            reference.nc1(moments.within, moments.means), rel=1e-5
        )
        assert callback.latest[f"nc/{split}/nc3"] == pytest.approx(reference.nc3(weight, moments.means), rel=1e-5)
        assert np.isfinite(callback.latest[f"nc/{split}/body.4/nc1"])


def test_configure_model_and_manual_optimisation():
    class Late(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def configure_model(self):
            if not hasattr(self, "net"):
                self.net = Classifier()

        def forward(self, x):
            return self.net.head(self.net.body(x))

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    model = Late()
    exact, online = NeuralCollapse(head="net.head"), NeuralCollapse(head="net.head", mode="online", prefix="online")
    trainer(exact, online, max_epochs=2).fit(model, loader())
    expected = whole_set(model.net, samples(), samples())
    assert exact.latest["nc/train/nc1"] == pytest.approx(expected["nc1"], rel=1e-5)
    assert int(online.latest["online/train/counts"].sum()) == 80


def test_deepspeed_stage_3_is_refused():
    class Strategy:
        zero_stage_3 = True

    class Trainer:
        strategy = Strategy()

    with pytest.raises(ValueError, match=r"cannot read the classifier under DeepSpeed's ZeRO stage 3.*Use stage 2"):
        NeuralCollapse().setup(Trainer(), Classifier(), "fit")


def test_a_frozen_head_is_measured():
    model = Classifier()
    model.head.requires_grad_(False)
    callback = NeuralCollapse()
    trainer(callback).fit(model, DataLoader(TensorDataset(*samples()), 16))
    assert callback.latest["nc/train/nc3"] == pytest.approx(whole_set(model, samples(), samples())["nc3"], rel=1e-5)
