"""Figures of looks with a class without samples, with an epoch of NaN, and of values that are constant."""

import re
from importlib.resources import files

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from nc_callbacks import figures
from nc_callbacks.figures import style
from nc_callbacks.figures.each import number_figures, vector_figures

K, ABSENT, LOOKS, BROKEN = 5, 2, 6, 3
VECTORS = ("wm_cosine_per_class", "mu1_per_class", "mu2_per_class", "sigma1_per_class", "sigma2_per_class")


def vector(epoch, k=K):
    values = torch.linspace(0.1, 0.9, k) + 0.01 * epoch
    values[ABSENT] = torch.nan
    return torch.full((k,), torch.nan) if epoch == BROKEN else values


def looks(k=K):
    """Class 2 is absent, and the look of epoch 3 (4, counted from 1) is not finite."""
    history = []
    for epoch in range(LOOKS):
        numbers = {"nc1": 10.0**-epoch, "accuracy": 0.9, "accuracy_centred_means": 0.8, "nc3": 0.5}
        numbers = {name: np.nan if epoch == BROKEN else value for name, value in numbers.items()}
        numbers |= {"sqi_ratio": 1 + 1e-7 * epoch, "sqi_gap": 1e-8 * epoch, "mu_ratio": 0.1 * epoch}
        vectors = {name: vector(epoch, k) for name in VECTORS}
        record = {f"nc/train/{name}": value for name, value in (numbers | vectors).items()}
        history.append({"epoch": epoch, "step": epoch} | record)
    cosines = torch.eye(k) - 0.25 * (1 - torch.eye(k))
    cosines[ABSENT], cosines[:, ABSENT] = torch.nan, torch.nan
    return history, history[-1] | {"nc/train/class_mean_cosines": cosines}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("k", [K, 12])
def test_a_class_without_samples_loses_no_figure(tmp_path, k, monkeypatch):
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **settings: path.touch())
    history, latest = looks(k)
    names = {path.stem for path in figures.save_alignment_figures(history, latest, tmp_path)}
    assert names == {"near_optimality_train", "wm_cosine_train", "accuracy_centred_means"}
    assert len(figures.save_metric_figures(history, latest, tmp_path)) == 7 + len(VECTORS) + 1


def test_a_class_without_samples_is_named_and_not_drawn():
    history, latest = looks()
    axes = figures.cosines_figure(history).axes[0]
    assert [line.get_label() for line in axes.lines if not len(line.get_xdata())] == ["class 2: no samples"]
    assert len(axes.lines) == K
    heat = figures.each.matrix_figures(latest)["class_mean_cosines/train"].axes[0]
    assert heat.get_xlabel() == "class (grey: no samples of 2)"
    # No number stands in its row and column, and its colour is that of no value.
    assert len(heat.texts) == (K - 1) ** 2
    image = heat.images[0]
    pixels = image.to_rgba(image.get_array())
    assert to_hex(pixels[ABSENT, 0]) == style.MISSING
    assert all(to_hex(colour) != style.MISSING for colour in np.delete(np.delete(pixels, ABSENT, 0), ABSENT, 1)[0])


def test_lines_are_open_where_a_value_is_not_finite():
    axes = number_figures(looks()[0])["nc1"].axes[0]
    assert np.isnan(axes.lines[0].get_ydata()).tolist() == [epoch == BROKEN for epoch in range(LOOKS)]


@pytest.mark.parametrize(
    ("name", "flat"), [("sqi_ratio", True), ("sqi_gap", True), ("mu_ratio", False), ("nc1", False)]
)
def test_rounding_is_no_trend(name, flat):
    axes = number_figures(looks()[0])[name].axes[0]
    values = [value for value in axes.lines[0].get_ydata() if np.isfinite(value)]
    low, high = axes.get_ylim()
    assert (max(values) - min(values) < 1e-4 * (high - low)) == flat
    assert ("constant, up to rounding" in axes.get_title()) == flat


def test_a_matrix_has_the_colours_of_the_page():
    css = (files("nc_callbacks.report") / "assets" / "style.css").read_text()
    script = (files("nc_callbacks.report") / "assets" / "matrices.js").read_text()
    light = dict(reversed(re.findall(r"--([\w-]+): (#\w{6});", css)))
    low, high = re.search(r'\[0, theme\("([\w-]+)"\)\].*\[1, theme\("([\w-]+)"\)\]', script).groups()
    assert (light[low], light[high], light["missing"]) == (style.BELOW, style.ABOVE, style.MISSING)
    colours = style.diverging()
    assert (to_hex(colours(0.0)), to_hex(colours(1.0)), to_hex(colours(np.nan))) == (
        light[low],
        light[high],
        style.MISSING,
    )


def test_no_legend_lies_over_data():
    history, latest = looks()
    made = [*number_figures(history).values(), *vector_figures(history).values()]
    made += [
        figures.near_optimality_figure(latest),
        figures.accuracies_figure(history),
        figures.cosines_figure(history),
    ]
    boxes = []
    for figure in made:
        figure.draw_without_rendering()
        for axes in figure.axes:
            if axes.get_legend() is not None:
                boxes.append((axes.get_legend().get_window_extent(), axes.get_window_extent()))
                assert figure.bbox.padded(1).contains(*boxes[-1][0].min)
    assert len(boxes) > 5
    assert not any(legend.overlaps(axes) for legend, axes in boxes)


def test_a_figure_that_fails_loses_no_other(tmp_path):
    def fails():
        raise ValueError("no such thing")

    history = looks()[0]
    good = number_figures(history)["nc1"]
    with pytest.raises(RuntimeError, match="broken could not be drawn: ValueError"):
        style.save_all({"broken": fails, "good": lambda: good}, tmp_path, ("png", "svg"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good.png", "good.svg"]
