"""When to look, what it costs, that training does not notice, logging, history, bad input."""

import csv
import re

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nc_callbacks import NeuralCollapse
from tests.callbacks.common import Classifier, K, loader, samples, trainer


class TestInvisible:
    def test_batch_hooks_see_no_training(self):
        class Model(Classifier):
            def on_after_batch_transfer(self, batch, dataloader_idx):
                self.tally.noted.append((self.training, self.trainer.training))
                return batch

        model = Model()
        trainer(NeuralCollapse()).fit(model, loader())
        stages = model.tally.noted
        batches = 5
        # One batch to check the set-up, the training batches, the look.
        assert stages == [(False, False)] + [(True, True)] * batches + [(False, False)] * batches


class TestSchedule:
    @pytest.mark.parametrize(
        ("settings", "expected"),
        [
            ({}, [0, 1, 2, 3, 4, 5]),
            ({"every_n_epochs": 2}, [1, 3, 5]),
            ({"epochs": [0, 3]}, [0, 3, 5]),
        ],
    )
    def test_epochs(self, settings, expected):
        callback = NeuralCollapse(**settings)
        trainer(callback, max_epochs=6).fit(Classifier(), loader())
        assert [record["epoch"] for record in callback.history] == expected

    def test_log_spacing(self):
        callback = NeuralCollapse(epochs="log")
        fit = trainer(max_epochs=1000)
        due = []
        for epoch in range(1000):
            fit.fit_loop.epoch_progress.current.processed = epoch
            fit.fit_loop.epoch_progress.current.completed = epoch
            if callback.is_due(fit):
                due.append(epoch + 1)
        assert due[:8] == [1, 2, 3, 4, 5, 6, 8, 10]
        assert due[-11:] == [100, 126, 158, 200, 251, 316, 398, 501, 631, 794, 1000]

    def test_one_pass_for_all_callbacks_of_one_source(self):
        model = Classifier()
        callbacks = [NeuralCollapse(prefix=prefix) for prefix in ("nc", "same")]
        callbacks.append(NeuralCollapse(prefix="val", splits=["val"]))
        trainer(*callbacks, max_epochs=2, num_sanity_val_steps=0).fit(model, loader(), loader(1))
        batches, epochs = 5, 2
        # Four calls find the classifier, and one tries each loader; Lightning's own validation and the looks at both
        # loaders follow.
        assert model.looks == 7 + epochs * (batches + 2 * batches)
        assert callbacks[0].latest["nc/train/nc1"] == callbacks[1].latest["same/train/nc1"]
        assert "val/val/nc1" in callbacks[2].latest

    def test_limits_of_the_trainer(self):
        callback = NeuralCollapse()
        trainer(callback, limit_train_batches=2).fit(Classifier(), loader())
        assert int(callback.latest["nc/train/counts"].sum()) == 32

    def test_fast_dev_run(self):
        callback = NeuralCollapse(splits=["train", "val"])
        trainer(callback, fast_dev_run=True).fit(Classifier(), loader(), loader(1))
        assert int(callback.latest["nc/train/counts"].sum()) == 16


class TestLogging:
    def test_csv_checkpoint_and_early_stopping_see_the_values(self, tmp_path):
        callback = NeuralCollapse()
        best = ModelCheckpoint(dirpath=tmp_path, monitor="nc/train/nc1", save_top_k=1, mode="min")
        stopping = EarlyStopping(monitor="nc/train/nc1", min_delta=1e9, patience=2, mode="min")
        fit = trainer(
            callback,
            best,
            stopping,
            max_epochs=10,
            enable_checkpointing=True,
            logger=CSVLogger(tmp_path, name="", version=""),
        )
        fit.fit(Classifier(), loader())
        values = [record["nc/train/nc1"] for record in callback.history]
        assert fit.current_epoch == 3  # no improvement by 1e9 in two epochs after the first
        assert float(best.best_model_score) == pytest.approx(min(values))
        with open(tmp_path / "metrics.csv") as file:
            rows = [row for row in csv.DictReader(file) if row["nc/train/nc1"]]
        assert [float(row["nc/train/nc1"]) for row in rows] == pytest.approx(values)
        assert [int(row["epoch"]) for row in rows] == [0, 1, 2]

    @pytest.mark.parametrize("settings", [{"val_check_interval": 0.5}, {"check_val_every_n_epoch": 2}])
    def test_monitors_read_this_epochs_value_wherever_validation_falls(self, settings, tmp_path):
        callback = NeuralCollapse(splits=["train", "val"])
        best = ModelCheckpoint(dirpath=tmp_path, monitor="nc/val/nc1", save_top_k=-1, filename="{epoch}")
        stopping = EarlyStopping(monitor="nc/train/nc1", patience=100)
        settings = settings | {"max_epochs": 4, "num_sanity_val_steps": 0, "enable_checkpointing": True}
        fit = trainer(best, stopping, callback, **settings)
        fit.fit(Classifier(), loader(0), loader(1))
        scores = {path.rsplit("=", 1)[1]: float(score) for path, score in best.best_k_models.items()}
        assert scores == {
            f"{record['epoch']}.ckpt": pytest.approx(record["nc/val/nc1"], rel=1e-5) for record in callback.history
        }
        assert stopping.best_score == pytest.approx(min(r["nc/train/nc1"] for r in callback.history), rel=1e-5)

    def test_a_second_fit_starts_a_new_history(self):
        callback = NeuralCollapse()
        for _ in range(2):
            trainer(callback, max_epochs=2).fit(Classifier(), loader())
        assert [record["epoch"] for record in callback.history] == [0, 1]

    def test_prefix(self):
        callback = NeuralCollapse(prefix="collapse")
        fit = trainer(callback)
        fit.fit(Classifier(), loader())
        assert "collapse/train/nc1" in fit.callback_metrics
        assert not any(key.startswith("nc/") for key in fit.callback_metrics)

    def test_history_is_restored_from_a_checkpoint(self, tmp_path):
        whole = NeuralCollapse()
        trainer(whole, max_epochs=4).fit(Classifier(), loader(shuffle=False))
        first = NeuralCollapse()
        fit = trainer(first, max_epochs=2)
        fit.fit(Classifier(), loader(shuffle=False))
        fit.save_checkpoint(tmp_path / "half.ckpt")
        second = NeuralCollapse()
        torch.load(tmp_path / "half.ckpt", weights_only=True)
        trainer(second, max_epochs=4).fit(Classifier(), loader(shuffle=False), ckpt_path=str(tmp_path / "half.ckpt"))
        assert [record["epoch"] for record in second.history] == [0, 1, 2, 3]
        for a, b in zip(first.history, second.history, strict=False):
            assert a["nc/train/nc1"] == b["nc/train/nc1"]
            assert torch.equal(a["nc/train/class_mean_norms"], b["nc/train/class_mean_norms"])

    def test_progress_bar_follows_the_trainer(self, capsys):
        trainer(NeuralCollapse()).fit(Classifier(), loader())
        assert "Neural collapse" not in "".join(capsys.readouterr())
        trainer(NeuralCollapse(), TQDMProgressBar(), enable_progress_bar=True).fit(Classifier(), loader())
        assert re.search(r"Neural collapse: train:\s+0%.*0/5", "".join(capsys.readouterr()))
        trainer(NeuralCollapse(), enable_progress_bar=True).fit(Classifier(), loader())


class TestFigures:
    @pytest.fixture(autouse=True)
    def _words_for_pictures(self, monkeypatch):
        def draw(callback, folder):
            (folder / "drawn.txt").write_text(f"{callback.prefix} after {len(callback.history)} looks")

        monkeypatch.setattr(NeuralCollapse, "draw", draw)

    def test_are_drawn_once_when_fit_ends_in_a_folder_a_prefix(self, tmp_path):
        callbacks = [NeuralCollapse(figures=tmp_path), NeuralCollapse(figures=tmp_path, prefix="other")]
        trainer(*callbacks, NeuralCollapse(prefix="none"), max_epochs=2).fit(Classifier(), loader())
        assert (tmp_path / "drawn.txt").read_text() == "nc after 2 looks"
        assert (tmp_path / "other" / "drawn.txt").read_text() == "other after 2 looks"
        assert len(list(tmp_path.rglob("*"))) == 3

    def test_default_folder(self, tmp_path):
        trainer(NeuralCollapse(figures=True), default_root_dir=tmp_path).fit(Classifier(), loader())
        assert (tmp_path / "figures" / "drawn.txt").read_text() == "nc after 1 looks"

    def test_a_figure_that_cannot_be_drawn_warns(self, tmp_path):
        (tmp_path / "file").write_text("in the way")
        with pytest.warns(UserWarning, match="NeuralCollapse could not draw its figures"):
            trainer(NeuralCollapse(figures=tmp_path / "file")).fit(Classifier(), loader())


class TestBadInput:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"every_n_epochs": 0}, "every_n_epochs must be at least 1, got 0"),
            ({"epochs": "all"}, 'epochs must be a list of epochs or "log"'),
            ({"splits": "train"}, "splits must be a list"),
            ({"splits": ["dev"]}, "splits must be a list"),
            ({"splits": []}, "splits must be a list"),
            ({"layers": "body"}, r"pass \['body'\]"),
            ({"mode": "sometimes"}, "mode must be"),
            ({"pool": "max"}, "pool must be"),
            ({"feature_cache": "a lot"}, "feature_cache must be"),
            ({"global_mean": "median"}, "global_mean must be"),
        ],
    )
    def test_arguments(self, settings, message):
        with pytest.raises(ValueError, match=message):
            NeuralCollapse(**settings)

    @pytest.mark.parametrize(
        ("callback", "data", "message"),
        [
            (NeuralCollapse(head="fc"), loader, r"head 'fc' is not a module of Model.*'body.0'.*'head'"),
            (NeuralCollapse(layers=["fc"]), loader, r"layer 'fc' is not a module of Model"),
            (NeuralCollapse(splits=["train", "val"]), loader, r'splits has "val", but the trainer has no validation'),
            (
                NeuralCollapse(),
                lambda: DataLoader(TensorDataset(samples()[0], samples()[1] + 1), 16, shuffle=True),
                r"targets must lie in 0…3 \(num_classes=4\), got \[4\]",
            ),
            (
                NeuralCollapse(),
                lambda: DataLoader([{"pixels": x, "class": y} for x, y in zip(*samples(), strict=True)], 16),
                r"Expected batches.*'class', 'pixels'.*Pass batch_fn=",
            ),
            (
                NeuralCollapse(batch_fn=lambda batch: (batch[0], batch[1][:-1])),
                loader,
                r"input of shape \(16, 8\) for targets of shape \(15,\)",
            ),
        ],
        ids=["head", "layer", "no val", "targets", "batch", "length"],
    )
    def test_is_refused_before_the_first_training_step(self, callback, data, message):
        class Model(Classifier):
            def training_step(self, batch, batch_idx):
                raise AssertionError("training began")

        with pytest.raises(ValueError, match=message):
            trainer(callback).fit(Model(), data())

    def test_ambiguous_head(self):
        class TwoHeads(Classifier):
            def __init__(self):
                super().__init__()
                self.other = nn.Linear(8, K)

            def forward(self, x):
                features = self.body(x)
                return self.head(features) + self.other(features)

        with pytest.raises(ValueError, match=r"Several modules can be the classifier: 'head', 'other'. Pass head="):
            trainer(NeuralCollapse()).fit(TwoHeads(), loader())
        callback = NeuralCollapse(head="other")
        trainer(callback).fit(TwoHeads(), loader())
        assert callback.head == "other"

    def test_empty_loaders(self):
        empty = DataLoader(TensorDataset(torch.zeros(0, 6), torch.zeros(0, dtype=torch.long)), 16)
        with pytest.raises(ValueError, match="The training loader is empty"):
            trainer(NeuralCollapse()).fit(Classifier(), empty)
        with pytest.raises(ValueError, match="The loader is empty: its TensorDataset has no samples"):
            trainer(NeuralCollapse(splits=["train", "val"])).fit(Classifier(), loader(), empty)

    def test_forward_fn_and_batch_fn(self):
        class StepOnly(Classifier):
            forward = None

            def training_step(self, batch, batch_idx):
                return nn.functional.cross_entropy(self.head(self.body(batch["data"][0])), batch["data"][1])

        x, y = samples()
        data = DataLoader([{"data": pair} for pair in zip(x, y, strict=True)], 16)
        callback = NeuralCollapse(
            batch_fn=lambda batch: batch["data"], forward_fn=lambda module, inputs: module.head(module.body(inputs))
        )
        trainer(callback).fit(StepOnly(), data)
        assert int(callback.latest["nc/train/counts"].sum()) == 80

    def test_module_without_forward(self):
        class Net(L.LightningModule):
            def __init__(self):
                super().__init__()
                self.net = Classifier()

            def training_step(self, batch, batch_idx):
                return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), 0.1)

        with pytest.raises(ValueError, match=r"Net has no forward method.*forward_fn="):
            trainer(NeuralCollapse()).fit(Net(), loader())
        callback = NeuralCollapse(forward_fn=lambda module, inputs: module.net(inputs))
        trainer(callback).fit(Net(), loader())
        assert callback.head == "net.head"

    def test_too_many_features(self):
        model = Classifier()
        model.body = nn.Sequential(nn.Linear(6, 40_000), nn.Linear(40_000, 8))
        with pytest.raises(ValueError, match=r"'body.1' has 40000 features.*6 GiB.*pool=\"mean\""):
            trainer(NeuralCollapse(layers=["body.1"])).fit(model, loader())
