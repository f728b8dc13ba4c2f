"""Figures of a model with several validation loaders: each says which loader, and shows its values."""

import numpy as np
import pytest

from nc_callbacks import figures
from nc_callbacks.figures import style
from tests.callbacks.common import Classifier, loader
from tests.figures.common import drawn


class TwoLoaders(Classifier):
    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        pass


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return drawn(tmp_path_factory.mktemp("figures"), TwoLoaders(), [loader(1), loader(2)], 2)


def test_files_are_named_by_metric_and_place(run):
    found = run[0]
    assert not any(name.startswith("dataloader_idx") for name in found)
    places = ("val_dataloader_idx_0", "val_dataloader_idx_1")
    kinds = ("collapse", "near_optimality", "wm_cosine", "quasi_interpolation", "spectrum", "spectrum_effective_rank")
    assert {f"{kind}_{place}" for kind in kinds for place in places} <= found
    assert {f"class_mean_cosines_{place}" for place in places} <= found
    assert {f"class_mean_cosines_val_body.4_dataloader_idx_{number}" for number in (0, 1)} <= found
    assert {"nc1", "nc3", "collapse", "layers", "wm_cosine_train", "accuracy_centred_means"} <= found


def test_a_line_a_split_layer_and_loader(run):
    collapse = run[1][0]
    (axes,) = figures.each.number_figures(collapse.history)["nc1"].axes
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert lines == {
        title: [record[key] for record in collapse.history]
        for title, key in {
            "train": "nc/train/nc1",
            "train, body.4": "nc/train/body.4/nc1",
            "val, loader 0": "nc/val/nc1/dataloader_idx_0",
            "val, loader 1": "nc/val/nc1/dataloader_idx_1",
            "val, loader 0, body.4": "nc/val/body.4/nc1/dataloader_idx_0",
            "val, loader 1, body.4": "nc/val/body.4/nc1/dataloader_idx_1",
        }.items()
    }


@pytest.mark.parametrize("number", [0, 1])
def test_titles_and_values_are_the_loaders(run, number):
    collapse, alignment, interpolation, spectrum = run[1]
    figure = figures.collapse_figure(collapse.history, collapse.latest, split="val", loader=number)
    assert figure.get_suptitle() == f"val, loader {number}"
    expected = [record[f"nc/val/nc3/dataloader_idx_{number}"] for record in collapse.history]
    assert list(figure.axes[3].lines[0].get_ydata()) == expected
    image = figure.axes[5].images[0].get_array()
    np.testing.assert_array_equal(image, collapse.latest[f"nc/val/class_mean_cosines/dataloader_idx_{number}"].numpy())

    axes = figures.cosines_figure(alignment.history, split="val", loader=number).axes[0]
    assert axes.get_title().endswith(f"val, loader {number}")
    last = [line.get_ydata()[-1] for line in axes.lines]
    np.testing.assert_array_equal(last, alignment.latest[f"nc/val/wm_cosine_per_class/dataloader_idx_{number}"].numpy())

    axes = figures.near_optimality_figure(alignment.latest, split="val", loader=number).axes[0]
    assert axes.get_title() == f"Class means: μ, val, loader {number}"
    expected = alignment.latest[f"nc/val/mu1_per_class/dataloader_idx_{number}"]
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), expected)

    axes = figures.interpolation_figure(interpolation.history, split="val", loader=number).axes[0]
    assert axes.get_title() == f"Average errors, val, loader {number}"
    assert axes.lines[0].get_ydata()[-1] == interpolation.latest[f"nc/val/sqi_epsilon/dataloader_idx_{number}"]

    axes = figures.spectrum_figure(spectrum.latest, split="val", loader=number).axes[1]
    assert axes.get_title().endswith(f"val, loader {number}")
    shares = [
        np.cumsum(spectrum.latest[f"nc/val/{layer}explained_variance/dataloader_idx_{number}"].numpy())
        for layer in ("", "body.4/")
    ]
    for line, cumulative in zip(axes.lines, shares, strict=True):
        np.testing.assert_allclose(line.get_ydata(), cumulative, rtol=1e-6)


def test_accuracies_have_a_panel_a_split_and_loader(run):
    titles = [axes.get_title() for axes in figures.accuracies_figure(run[1][1].history).axes]
    assert titles == ["Accuracy, train", "Accuracy, val, loader 0", "Accuracy, val, loader 1"]


def test_keys_of_another_prefix_are_not_drawn():
    history = [{"epoch": 0, "nc/train/nc1": 1.0, "mine/train/nc1": 2.0, "mine/train/x": 3.0}]
    assert [str(key) for key in style.keys_of(history, "nc1")] == ["nc/train/nc1"]
    assert {name: list(map(str, keys)) for name, keys in style.numbers(history, "mine").items()} == {
        "nc1": ["mine/train/nc1"],
        "x": ["mine/train/x"],
    }
