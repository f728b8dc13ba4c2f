"""The page in headless Chromium, with values that are not there or all the same, and on paper."""

import numpy as np
import pytest

from tests.report.chromium import browser, figure, opened, plotted
from tests.report.common import curves, make_run

__all__ = ["browser", "opened"]
pytestmark = pytest.mark.slow
HEAT = "Cosines of the centred class means"


@pytest.fixture
def folder(tmp_path):
    """Epoch 7 is NaN, class 2 has no samples, the outputs add up to 1."""
    found = curves()
    for key in found:
        if key.startswith("nc/"):
            found[key][6] = np.nan
    found["nc/train/sqi_ratio"] = 1 + 1e-7 * np.sin(np.arange(30))
    found["nc/train/sqi_gap"] = 1e-8 * np.arange(30.0)
    folder = make_run(tmp_path / "run", found=found)
    arrays = dict(np.load(folder / "looks.npz"))
    for key, values in arrays.items():
        if "@" not in key and "explained" not in key:
            values[:, 2] = np.nan
            if values.ndim == 3:
                values[:, :, 2] = np.nan
    np.savez(folder / "looks.npz", **arrays)
    return folder


def test_lines_are_open_where_a_value_is_not_finite(opened, folder):
    page = opened(folder)
    trace = plotted(page, "Within-class variability", "data[0]")
    assert [x for x, y in zip(trace["x"], trace["y"], strict=True) if y is None] == [7]
    assert trace["connectgaps"] is False
    # Four lines of one panel, each with one.
    note = figure(page, "Within-class variability").locator(".note").inner_text()
    assert note == "4 values were not finite: the lines are open there. At collapse 0."


def test_rounding_is_no_trend(opened, folder):
    page = opened(folder)
    for title, value in (("Ratio ε / ((k−1) ε̃)", 1), ("Gap ε − (k−1) ε̃", 0)):
        low, high = plotted(page, title, "_fullLayout.yaxis.range")
        assert high - low > 0.5
        assert low < value < high
        assert "Constant, up to rounding." in figure(page, title).locator(".note").inner_text()
    low, high = plotted(page, "Cosine of weights and centred class means", "_fullLayout.yaxis.range")
    # From 0.5 to its value at collapse, 1.
    assert 0.5 < high - low < 0.6


def test_a_class_without_samples_has_no_cosine(opened, folder):
    page = opened(folder)
    heat = plotted(page, HEAT, "data[0]")
    assert all(row[2] is None for row in heat["z"])
    assert heat["z"][2] == [None] * 4
    missing = page.evaluate("theme('missing')")
    assert plotted(page, HEAT, "layout.plot_bgcolor") == missing
    assert missing not in [colour for _, colour in heat["colorscale"]]
    # Blue for the least, as in the figures.
    assert heat["colorscale"][0][1] == page.evaluate("theme('series-0')")
    assert "Grey: no samples of class 2." in figure(page, HEAT).locator(".note").inner_text()
    assert "2: no samples" in figure(page, "Cos(w_c, μ_c) over epochs").locator(".legend").inner_text()


SEEN = """() => addEventListener("beforeprint", () => {
  window.paper = charts.filter(chart => !chart.figure.hidden).map(({ plot, figure }) => {
    const drawn = plot.querySelector(".main-svg");
    const inside = drawn && drawn.getBoundingClientRect().right <= figure.getBoundingClientRect().right;
    return { inside, traces: plot.data?.length ?? 0, right: figure.getBoundingClientRect().right };
  });
  window.paperInk = theme("paper");
})"""


@pytest.mark.parametrize("scroll", [False, True])
def test_paper_has_every_chart_whole(opened, folder, scroll):
    page = opened(folder, color_scheme="dark")
    if scroll:
        figure(page, HEAT)
    page.evaluate(SEEN)
    assert page.pdf(format="A4").startswith(b"%PDF")
    seen = page.evaluate("window.paper")
    assert len(seen) > 10
    assert all(chart["inside"] and chart["traces"] for chart in seen)
    assert max(chart["right"] for chart in seen) <= 720
    assert page.evaluate("window.paperInk") == "#ffffff"
    # Then the screen has its own again.
    assert not page.evaluate("document.documentElement.classList.contains('printing')")
    assert plotted(page, HEAT, "_fullLayout.width") > 250


def test_paper_is_as_wide_as_its_widest_table(opened, tmp_path):
    """A table that runs over the sheet would make the browser shrink everything."""
    made = make_run(tmp_path / "run")
    with np.load(made / "looks.npz") as kept:
        arrays = dict(kept)
    key = "nc/train/sqi_samples"
    arrays |= {
        key: np.full((1, 3, 13), 1.23e-7, np.float32),
        f"{key}@epochs": np.array([30]),
        f"{key}@step": np.array(1),
    }
    np.savez(made / "looks.npz", **arrays)
    page = opened(made)
    figure(page, HEAT)
    assert page.locator("#samples td").count() == 4 * 13
    page.evaluate("addEventListener('beforeprint', () => { window.widest = document.documentElement.scrollWidth; })")
    page.set_viewport_size({"width": 704, "height": 900})
    page.pdf(format="A4")
    assert page.evaluate("window.widest") <= 704


def test_paper_says_what_was_chosen(opened, folder):
    """The split and the epoch of the looks, and which dash is which split; nothing that only chooses."""
    page = opened(folder)
    page.evaluate("addEventListener('beforeprint', () => { window.said = document.body.innerText; })")
    page.pdf(format="A4")
    said = page.evaluate("window.said").split("\n")
    assert {"train", "val"} <= set(said)
    assert any(text.startswith("epoch ") for text in said)
    assert not {"Log values", "PNG", "▶ Play"} & set(said)
