"""What TensorBoard and W&B were given, read back from their files."""

import csv
import json
import os

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import OmegaConf

from nc_callbacks import FeatureSpectrum, NeuralCollapse, WeightMeanAlignment
from nc_callbacks.runs.loggers import MAX_ROWS, _figures, _is_logged_in, log_results, per_class_tables
from tests.callbacks.common import Classifier, loader
from tests.processes import ROOT, python
from tests.runs.wandb_file import key, read

FAIL = "+callbacks.fail._target_=tests.runs.failing.FailOnRank"


def run(folder, *arguments):
    environment = os.environ | {"NETRC": str(folder / "netrc"), "WANDB_CONFIG_DIR": str(folder / "config")}
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        environment.pop(name, None)
    quick = ("trainer=cpu", "model=mlp", "trainer.max_epochs=2")
    return python(ROOT / "train.py", *arguments, *quick, folder=folder, environment=environment)


def logged(folder):
    """Epochs and values of each log key in metrics.csv."""
    with open(folder / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    keys = [name for name in rows[0] if name not in ("epoch", "step")]
    return {name: {int(row["epoch"]): float(row[name]) for row in rows if row[name]} for name in keys}


@pytest.fixture(scope="module")
def wandb_sweep(tmp_path_factory):
    """Two runs on a machine without a W&B account; the first fails while it trains."""
    folder = tmp_path_factory.mktemp("wandb")
    given = ["-m", "logger=wandb", "callbacks=weight_mean_alignment", FAIL, "+callbacks.fail.rank=0,9"]
    ended = run(folder, *given, f"hydra.sweep.dir={folder / 'grid' / 'one'}")
    assert ended.returncode == 1, ended.stderr
    files = [list((folder / "grid" / "one" / number / "wandb").glob("offline-run-*/run-*.wandb")) for number in "01"]
    assert [len(found) for found in files] == [1, 1]
    return folder / "grid" / "one", [read(found[0]) for found in files], files[1][0].parent


def of_kind(records, kind):
    return [getattr(record, kind) for record in records if record.WhichOneof("record_type") == kind]


@pytest.mark.slow
def test_wandb_run_a_job(wandb_sweep):
    _, runs, _ = wandb_sweep
    (first,), (second,) = (of_kind(records, "run") for records in runs)
    assert first.run_id != second.run_id
    assert [of_kind(records, "exit")[0].exit_code for records in runs] == [1, 0]
    assert first.run_group == second.run_group == "grid/one"
    assert list(second.tags) == ["digits", "mlp", "cross_entropy", "adam"]
    assert "callbacks.fail.rank=9" in second.display_name
    config = {key(item): json.loads(item.value_json) for record in runs[1] for item in record.run.config.update}
    config |= {key(item): json.loads(item.value_json) for given in of_kind(runs[1], "config") for item in given.update}
    assert config["trainer"]["max_epochs"] == 2


@pytest.mark.slow
def test_wandb_has_the_epoch_as_x_axis(wandb_sweep):
    axes = {given.glob_name or given.name: given.step_metric for given in of_kind(wandb_sweep[1][1], "metric")}
    assert axes["*"] == "epoch"
    assert axes["epoch"] == ""


@pytest.mark.slow
def test_wandb_scalars_are_those_of_the_csv(wandb_sweep):
    folder, runs, _ = wandb_sweep
    found = {}
    for history in of_kind(runs[1], "history"):
        values = {key(item): json.loads(item.value_json) for item in history.item}
        for name, value in values.items():
            if isinstance(value, float | int):
                found.setdefault(name, {})[values["epoch"]] = value
    expected = logged(folder / "1")
    assert {"nc/train/wm_cosine", "nc/val/mu_ratio", "train/loss", "val/accuracy"} <= set(expected)
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=1e-5), name


@pytest.mark.slow
def test_wandb_figures_and_tables(wandb_sweep):
    folder, runs, files = wandb_sweep
    last = {key(item): json.loads(item.value_json) for item in of_kind(runs[1], "history")[-1].item}
    figures = {path.stem: path for path in (folder / "1" / "figures").glob("*.png")}
    assert figures
    for name, path in figures.items():
        assert last[f"figures/{name}/_type"] == "image-file"
        assert (files / "files" / last[f"figures/{name}/path"]).read_bytes() == path.read_bytes()
    assert last["nc/train/per_class/_type"] == "table-file"
    table = json.loads((files / "files" / last["nc/train/per_class/path"]).read_text())
    assert table["columns"][:2] == ["epoch", "class"]
    assert [row[:2] for row in table["data"]] == [[epoch, label] for epoch in (0, 1) for label in range(10)]
    column = table["columns"].index("wm_cosine_per_class")
    cosines = [row[column] for row in table["data"] if row[0] == 1]
    assert sum(cosines) / 10 == pytest.approx(logged(folder / "1")["nc/train/wm_cosine"][1], rel=1e-5)


@pytest.mark.slow
def test_wandb_has_the_page(wandb_sweep):
    folder, runs, _ = wandb_sweep
    (artifact,) = [found for found in of_kind(runs[1], "artifact") if found.type == "report"]
    assert artifact.name == f"report-{of_kind(runs[1], 'run')[0].run_id}"
    (entry,) = artifact.manifest.contents
    assert entry.path == "report.html"
    assert entry.size == (folder / "1" / "report.html").stat().st_size


@pytest.mark.parametrize(
    ("netrc", "environment", "expected"),
    [
        ("machine api.wandb.ai login user password secret", {}, True),
        ("machine else.where login user password secret", {}, False),
        ("machine my.host login user password secret", {"WANDB_BASE_URL": "https://my.host:8080"}, True),
        ("machine", {}, False),
        (None, {}, False),
        (None, {"WANDB_API_KEY": "secret"}, True),
    ],
)
def test_an_account_is_found_without_asking(tmp_path, monkeypatch, netrc, environment, expected):
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    if netrc is not None:
        (tmp_path / "netrc").write_text(netrc)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert _is_logged_in() is expected


@pytest.mark.slow
def test_tensorboard(tmp_path):
    from matplotlib.image import imread
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    given = ("logger=tensorboard", "callbacks=weight_mean_alignment", "figure_epochs=[0]")
    ended = run(tmp_path, *given, f"hydra.run.dir={tmp_path}")
    assert ended.returncode == 0, ended.stderr
    events = EventAccumulator(
        str(tmp_path / "tensorboard"), size_guidance={"images": 0, "scalars": 0, "histograms": 0}
    ).Reload()
    tags = events.Tags()
    expected = logged(tmp_path)
    for name, values in expected.items():
        assert [event.value for event in events.Scalars(name)] == pytest.approx(list(values.values()), rel=1e-5), name
    # Adam steps of 12 batches an epoch: values come with the last step of their epoch.
    assert [event.step for event in events.Scalars("nc/train/wm_cosine")] == [11, 23]
    assert "hp_metric" not in tags["scalars"]

    figures = {f"figures/{path.stem}": path for path in (tmp_path / "figures").glob("*.png")}
    assert set(tags["images"]) == set(figures)
    name, path = sorted(figures.items())[0]
    (tmp_path / "from_events.png").write_bytes(events.Images(name)[-1].encoded_image_string)
    assert imread(tmp_path / "from_events.png") == pytest.approx(imread(path), abs=1 / 255)

    summary = json.loads((tmp_path / "summary.json").read_text())["metrics"]
    # No chart of one point.
    assert set(tags["scalars"]) - {"epoch"} == set(expected)
    assert {"nc/train/wm_cosine_per_class", "nc/val/mu1_per_class"} <= set(tags["histograms"])
    histograms = events.Histograms("nc/train/wm_cosine_per_class")
    assert [event.step for event in histograms] == [12, 24]
    mean = histograms[-1].histogram_value.sum / histograms[-1].histogram_value.num
    assert mean == pytest.approx(summary["nc/train/wm_cosine"], rel=1e-5)
    plugin = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    given = HParamsPluginData.FromString(plugin).session_start_info.hparams
    assert given["model/activation"].string_value == "tanh"
    assert given["seed"].number_value == 0
    plugin = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    shown = {info.name.tag for info in HParamsPluginData.FromString(plugin).experiment.metric_infos}
    assert shown == set(summary)


def test_a_logger_that_fails_gives_a_warning(tmp_path, monkeypatch):
    given = {"default_root_dir": tmp_path, "accelerator": "cpu", "max_epochs": 1, "enable_checkpointing": False}
    trainer = Trainer(
        **given, logger=TensorBoardLogger(tmp_path), enable_progress_bar=False, enable_model_summary=False
    )
    trainer.fit(Classifier(), loader())

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(trainer.logger, "finalize", full)
    with pytest.warns(UserWarning, match="could not log figures, tables or hparams: OSError"):
        log_results(trainer, OmegaConf.create({"seed": 0}), {"loss": 1.0})


def test_figures_are_found_where_the_callbacks_save_them(tmp_path):
    own, default = WeightMeanAlignment(figures=tmp_path / "own"), WeightMeanAlignment(figures=True)
    for path in ("own/a.png", "own/other/b.png", "figures/c.png", "else/d.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    trainer = Trainer(default_root_dir=tmp_path, accelerator="cpu", logger=False)
    assert _figures(trainer, [own]) == {"a": tmp_path / "own/a.png", "other/b": tmp_path / "own/other/b.png"}
    assert set(_figures(trainer, [own, default])) == {"a", "other/b", "c"}
    assert _figures(trainer, [WeightMeanAlignment()]) == {}


def callback_with(looks, classes, **vectors):
    callback = WeightMeanAlignment()
    callback.history = [
        {"epoch": epoch, "step": epoch, "nc/train/wm_cosine": 0.5}
        | {f"nc/train/{name}": torch.full((classes,), value + epoch) for name, value in vectors.items()}
        for epoch in looks
    ]
    return callback


def test_per_class_tables_of_several_callbacks():
    norms = NeuralCollapse()
    norms.history = [{"epoch": 1, "nc/train/class_mean_norms": torch.tensor([3.0, 4.0])}]
    spectrum = FeatureSpectrum()
    spectrum.history = [{"epoch": 1, "nc/train/explained_variance": torch.tensor([3.0, 4.0])}]
    ((name, (columns, rows)),) = per_class_tables([callback_with([0, 1], 2, a=0.25), norms, spectrum]).items()
    assert (name, columns) == ("nc/train/per_class", ["epoch", "class", "a", "class_mean_norms"])
    assert rows == [[0, 0, 0.25, None], [0, 1, 0.25, None], [1, 0, 1.25, 3.0], [1, 1, 1.25, 4.0]]


@pytest.mark.parametrize(("looks", "classes"), [(100, 100), (101, 100), (350, 1000), (3, 9000)])
def test_per_class_tables_fit_and_hold_the_last_look(looks, classes):
    _, rows = per_class_tables([callback_with(range(looks), classes, a=0.0)])["nc/train/per_class"]
    epochs = sorted({row[0] for row in rows})
    assert len(rows) == len(epochs) * classes <= MAX_ROWS
    assert epochs[-1] == looks - 1
    # Even, and no fewer than half of what would fit.
    assert len(set(torch.tensor(epochs).diff().tolist())) <= 1
    assert len(rows) > MAX_ROWS / 2 or len(epochs) == 1 or looks * classes <= MAX_ROWS


def test_tables_of_several_loaders_and_layers():
    """Vectors by class alone, each in the table of its split, layer and loader."""
    callback = NeuralCollapse()
    of_loaders = {f"nc/val/counts/dataloader_idx_{i}": torch.tensor([1.0 + i, 2.0 + i]) for i in (0, 1)}
    callback.history = [
        {
            "epoch": 3,
            "step": 9,
            "nc/train/body.4/counts": torch.tensor([5.0, 6.0]),
            "nc/train/explained_variance": torch.tensor([0.5, 0.25, 0.25]),
            "nc/train/nc1": 0.5,
            **of_loaders,
        }
    ]
    header = ["epoch", "class", "counts"]
    assert per_class_tables([callback]) == {
        "nc/train/body.4/per_class": (header, [[3, 0, 5.0], [3, 1, 6.0]]),
        "nc/val/per_class/dataloader_idx_0": (header, [[3, 0, 1.0], [3, 1, 2.0]]),
        "nc/val/per_class/dataloader_idx_1": (header, [[3, 0, 2.0], [3, 1, 3.0]]),
    }
