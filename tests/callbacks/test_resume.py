"""A run that was stopped and resumed is the run that was not stopped."""

import os
import signal
import warnings

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from nc_callbacks import FeatureSpectrum, NeuralCollapse, QuasiInterpolation, WeightMeanAlignment
from tests.callbacks.common import Classifier, loader, trainer
from tests.processes import on_ranks

# Online says which epoch it leaves out.
pytestmark = pytest.mark.filterwarnings("ignore:Training resumed inside")


def callbacks():
    exact = {"splits": ["train", "val"]}
    return [
        NeuralCollapse(**exact),
        WeightMeanAlignment(**exact),
        QuasiInterpolation(samples=[1], **exact),
        FeatureSpectrum(epochs=[1, 4]),
        NeuralCollapse(mode="online", prefix="online", **exact),
    ]


class Still(Classifier):
    """Without dropout, whose random numbers a checkpoint does not keep."""

    def __init__(self):
        super().__init__()
        self.body[3] = torch.nn.Identity()


def fit(epochs, ckpt_path=None, *others, **settings):
    watching, model = callbacks(), Still()
    run = trainer(*watching, *others, max_epochs=epochs, num_sanity_val_steps=0, **settings)
    run.fit(model, loader(shuffle=False), loader(1, shuffle=False), ckpt_path=ckpt_path)
    return run, model, watching


def assert_same_history(whole, resumed):
    for one, other in zip(whole, resumed, strict=True):
        assert [r["epoch"] for r in one.history] == [r["epoch"] for r in other.history]
        for record, again in zip(one.history, other.history, strict=True):
            assert record.keys() == again.keys()
            for key, value in record.items():
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(again[key])), (record["epoch"], key)
        assert one.latest.keys() == other.latest.keys()


def assert_same_weights(model, other):
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.fixture(scope="module")
def whole():
    return fit(6)


@pytest.mark.slow
def test_stopped_after_three_epochs_of_six(whole, tmp_path):
    run, *_ = fit(3)
    run.save_checkpoint(tmp_path / "half.ckpt")
    torch.load(tmp_path / "half.ckpt", weights_only=True)
    _, model, watching = fit(6, str(tmp_path / "half.ckpt"))
    # FeatureSpectrum looks at the last epoch of `max_epochs` too, which was the third of the stopped run.
    spectrum = watching[3]
    assert [record["epoch"] for record in spectrum.history] == [1, 2, 4, 5]
    spectrum.history = [record for record in spectrum.history if record["epoch"] != 2]
    assert_same_history(whole[2], watching)
    assert_same_weights(whole[1], model)


@pytest.mark.slow
@pytest.mark.parametrize("at_train_end", [True, False])
def test_resumed_from_any_epochs_checkpoint(whole, at_train_end, tmp_path):
    """Also from one that is saved after validation, before the look of its epoch."""
    saving = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=at_train_end)
    fit(6, None, saving, enable_checkpointing=True)
    for epoch in (0, 2, 4):
        _, model, watching = fit(6, str(tmp_path / f"epoch={epoch}.ckpt"))
        if at_train_end:
            assert_same_history(whole[2], watching)
        else:
            looked = [record["epoch"] for record in watching[0].history]
            assert sorted(set(looked)) == looked
            assert set(looked) >= set(range(6)) - {epoch}
        assert_same_weights(whole[1], model)


@pytest.mark.parametrize("mode", ["epoch_end", "online"])
def test_resumed_inside_an_epoch(mode, tmp_path):
    """A look does not mind; online leaves out the epoch of which it has not seen all, and says so."""
    saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=7, save_top_k=-1)
    settings = {"max_epochs": 3, "num_sanity_val_steps": 0}
    trainer(NeuralCollapse(mode=mode), saving, enable_checkpointing=True, **settings).fit(Still(), loader())
    callback = NeuralCollapse(mode=mode)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # Of 5 batches an epoch, the second epoch's second.
        trainer(callback, **settings).fit(Still(), loader(), ckpt_path=str(tmp_path / "step=7.ckpt"))
    assert [record["epoch"] for record in callback.history] == ([0, 1, 2] if mode == "epoch_end" else [0, 2])
    told = [str(w.message) for w in caught if "Training resumed inside epoch 2" in str(w.message)]
    assert len(told) == (mode == "online")


@pytest.mark.parametrize(
    "key", ["nc/train/nc1", "nc/val/nc4", "nc/train/wm_cosine", "nc/val/sqi_ratio", "online/train/nc1"]
)
def test_checkpoints_and_early_stopping_follow_any_key(key, tmp_path):
    best = ModelCheckpoint(tmp_path, monitor=key, save_top_k=1)
    stopping = EarlyStopping(key, patience=1, min_delta=1e9)
    run, _, watching = fit(6, None, best, stopping, enable_checkpointing=True)
    assert run.current_epoch == 2
    history = next(callback.history for callback in watching if key in callback.latest)
    assert float(best.best_model_score) == pytest.approx(min(record[key] for record in history), abs=1e-6)


class Ended(Still):
    """At the first batch of the third look, the process is asked to end."""

    def forward(self, x):
        if not torch.is_grad_enabled() and self.trainer.current_epoch == 2:
            self.tally.noted.append(len(x))
            if len(self.tally.noted) == 1:
                os.kill(os.getpid(), signal.SIGTERM)
        return super().forward(x)


def batches_after_sigterm(folder):
    model = Ended()
    saving = ModelCheckpoint(folder, filename="last", enable_version_counter=False)
    with pytest.raises(SystemExit):
        trainer(NeuralCollapse(), saving, max_epochs=6, enable_checkpointing=True).fit(model, loader(shuffle=False))
    return model.tally.noted[1:]


def test_sigterm_during_a_look_leaves_a_usable_checkpoint(tmp_path):
    (later,) = on_ranks(batches_after_sigterm, 1, tmp_path, as_torchrun=False)
    # That look had four batches to go: it ended with the first.
    assert later == []
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["epoch"] in (1, 2)
    whole = NeuralCollapse()
    model = Still()
    trainer(whole, max_epochs=6).fit(model, loader(shuffle=False))
    resumed, again = NeuralCollapse(), Still()
    trainer(resumed, max_epochs=6).fit(again, loader(shuffle=False), ckpt_path=str(tmp_path / "last.ckpt"))
    assert_same_weights(model, again)
    # The look that was cut short is the only one that may be missing.
    of_epoch = {record["epoch"]: record["nc/train/nc1"] for record in whole.history}
    found = {record["epoch"]: record["nc/train/nc1"] for record in resumed.history}
    assert set(of_epoch) - set(found) <= {2}
    assert all(of_epoch[epoch] == value for epoch, value in found.items())
