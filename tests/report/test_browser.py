"""The page in headless Chromium: it loads in silence, and its controls do what they say."""

import numpy as np
import pytest

from tests.report.chromium import browser, figure, opened, plotted, see_all, wait_until
from tests.report.common import curves, make_run, make_sweep, write_looks

__all__ = ["browser", "opened"]
pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("make", "width", "scheme"),
    # Each pair of choices once.
    [
        (make_run, 1280, "light"),
        (make_run, 390, "dark"),
        (make_sweep, 1280, "dark"),
        (make_sweep, 390, "light"),
    ],
)
def test_every_chart_is_drawn_in_silence(opened, tmp_path, make, width, scheme):
    page = opened(make(tmp_path / "folder"), width, color_scheme=scheme)
    see_all(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("charts.filter(chart => chart.plot.children.length).length") > 10


def test_charts_are_drawn_as_they_come_into_view(opened, tmp_path):
    page = opened(make_sweep(tmp_path / "sweep"))
    first, last = (f"charts.at({place}).plot.children.length > 0" for place in (0, -2))
    assert not page.evaluate(last)
    page.evaluate("charts[0].figure.scrollIntoView({ behavior: 'instant' })")
    wait_until(page, f"{first} && waiting.size === 0")
    assert page.evaluate("charts.every(chart => !chart.visible || chart.plot.children.length > 0)")
    assert not page.evaluate(last)
    # One that was passed by before its turn is left out, and drawn when it is looked at.
    page.evaluate("(chart => { chart.visible = true; chart.await(); chart.visible = false; })(charts.at(-2))")
    wait_until(page, "waiting.size === 0")
    assert not page.evaluate(last)
    page.evaluate("charts.at(-2).figure.scrollIntoView({ behavior: 'instant' })")
    wait_until(page, last)


def test_log_switch(opened, tmp_path):
    page = opened(make_run(tmp_path / "run"))
    title = "Within-class variability"
    switch = page.get_by_role("switch", name="Log values")
    assert switch.get_attribute("aria-checked") == "true"
    assert plotted(page, title, "_fullLayout.yaxis.type") == "log"
    assert plotted(page, "Accuracy", "_fullLayout.yaxis.type") == "linear"
    switch.click()
    assert switch.get_attribute("aria-checked") == "false"
    assert plotted(page, title, "_fullLayout.yaxis.type") == "linear"
    switch.focus()
    page.keyboard.press("Space")
    assert plotted(page, title, "_fullLayout.yaxis.type") == "log"
    assert plotted(page, title, "_fullLayout.xaxis.type") == "linear"
    page.get_by_role("switch", name="Log epochs").click()
    assert plotted(page, title, "_fullLayout.xaxis.type") == "log"


def test_lines_are_the_metrics(opened, tmp_path):
    page = opened(make_run(tmp_path / "run"))
    traces = plotted(page, "Within-class variability", "data")
    names = ["tr(Σ_W Σ_B⁺)/k", "class-distance normalised variance"]
    assert [trace["name"] for trace in traces] == [f"{name}, {split}" for name in names for split in ("train", "val")]
    np.testing.assert_allclose(traces[2]["y"], curves()["nc/train/nc1_cdnv"], rtol=1e-6)
    assert traces[0]["x"] == list(range(1, 31))
    assert [trace["line"]["dash"] for trace in traces] == ["solid", "dash"] * 2
    page.get_by_role("button", name="val", exact=True).click()
    assert len(plotted(page, "Within-class variability", "data")) == 2


def test_values_without_a_place_on_a_logarithmic_axis_are_counted(opened, tmp_path):
    page = opened(make_run(tmp_path / "run"))
    # nc4 ends at 0, on both splits.
    note = figure(page, "Classifier ≠ nearest class mean").locator(".note")
    assert note.inner_text() == "2 values at or below 0 have no place on a logarithmic axis. At collapse 0."


def test_a_runs_name_hides_and_shows_it(opened, tmp_path):
    page = opened(make_sweep(tmp_path / "sweep"))
    title = "Within-class variability: tr(Σ_W Σ_B⁺)/k"
    names = [trace["name"] for trace in plotted(page, title, "data")]
    assert len(names) == 4
    in_table = page.locator("#runs tbody").get_by_role("button", name="1", exact=True)
    above_curves = page.get_by_role("button", name="1 (activation=tanh, seed=1)")
    in_table.click()
    assert [trace["name"] for trace in plotted(page, title, "data")] == [names[0], *names[2:]]
    assert [b.get_attribute("aria-pressed") for b in (in_table, above_curves)] == ["false", "false"]
    above_curves.click()
    assert [trace["name"] for trace in plotted(page, title, "data")] == names
    assert in_table.get_attribute("aria-pressed") == "true"
    page.get_by_role("button", name="None", exact=True).click()
    assert page.locator("#curves figure").evaluate_all("figures => figures.every(figure => figure.hidden)")
    assert page.locator("#runs tbody").get_by_role("button", name="10").count() == 0


def test_table_sorts(opened, tmp_path):
    page = opened(make_sweep(tmp_path / "sweep"))

    def order():
        return [row.inner_text() for row in page.locator("#runs tbody th").all()]

    assert order() == ["0", "1", "2", "3", "10"]
    heading = page.get_by_role("button", name="nc1", exact=True)
    heading.click()
    assert order() == ["0", "1", "2", "3", "10"]
    heading.click()
    assert order() == ["10", "3", "2", "1", "0"]
    assert heading.locator("..").get_attribute("aria-sort") == "descending"
    page.get_by_role("button", name="activation", exact=True).click()
    assert order()[0] == "10"
    page.get_by_role("button", name="run", exact=True).click()
    assert order() == ["0", "1", "2", "3", "10"]
    assert heading.locator("..").get_attribute("aria-sort") == "none"


def test_axes_and_colours_are_chosen(opened, tmp_path):
    page = opened(make_sweep(tmp_path / "sweep"))
    page.get_by_label("Horizontal").select_option("seed")
    page.get_by_label("Vertical").select_option("nc/train/nc1")
    traces = plotted(page, "Runs against each other, final values", "data")
    assert [(trace["x"], trace["y"]) for trace in traces] == [([0], [0.02]), ([1], [0.04]), ([0], [0.1]), ([1], [0.2])]
    assert len({trace["marker"]["color"] for trace in traces}) == 4
    page.get_by_label("Colour by").select_option("model.activation")
    traces = plotted(page, "Runs against each other, final values", "data")
    colours = [trace["marker"]["color"] for trace in traces]
    assert colours[0] == colours[1] != colours[2] == colours[3]


def test_slider_moves_the_panels(opened, tmp_path):
    page = opened(make_run(tmp_path / "run"))
    slider = page.get_by_role("slider", name="Look")
    # The matrix is e/100 off the diagonal at epoch e: 0.3 at the last look.
    assert plotted(page, "Cosines of the centred class means", "data[0].z[0][1]") == pytest.approx(0.3, abs=1e-4)
    assert page.locator("output").inner_text() == "epoch 30"
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("output").inner_text() == "epoch 2"
    assert slider.get_attribute("aria-valuetext") == "epoch 2"
    assert plotted(page, "Cosines of the centred class means", "data[0].z[0][1]") == pytest.approx(0.02, abs=1e-4)
    assert plotted(page, "Class means: μ", "data[0].y") == pytest.approx([2, 2.001, 2.002, 2.003])
    play = page.locator("#play")
    play.click()
    assert play.inner_text().endswith("Pause")
    wait_until(page, "document.getElementById('play').getAttribute('aria-pressed') === 'false'")
    assert page.locator("output").inner_text() == "epoch 30"


def test_a_thousand_classes_are_bands_and_blocks(opened, tmp_path):
    folder = make_run(tmp_path / "run")
    write_looks(folder / "looks.npz", classes=100, step=10)
    page = opened(folder)
    traces = plotted(page, "Cos(w_c, μ_c) over epochs", "data")
    assert len(traces) == 7
    # Entries at epoch e are (e + c/1000)/40 for c < 100.
    assert traces[-1]["y"][-1] == pytest.approx((30 + 0.0495) / 40)
    assert traces[0]["y"][-1] == pytest.approx(30 / 40)
    assert traces[1]["y"][-1] == pytest.approx((30 + 0.099) / 40)
    heat = plotted(page, "Cosines of the centred class means", "data[0]")
    assert (heat["dx"], heat["x0"], heat["customdata"][0][1]) == (10, 4.5, ["classes 0 to 9", "classes 10 to 19"])


def test_strings_of_runs_stay_text(opened, tmp_path):
    attack = "</script><img src=x onerror=document.title='broken'><b>x</b>&amp;"
    folder = tmp_path / "sweep"
    for number in range(2):
        make_run(
            folder / f"{number}<img src=x onerror=document.title='broken'>", (f"model.activation={attack}{number}",)
        )
    page = opened(folder)
    see_all(page)
    page.get_by_label("Colour by").select_option("model.activation")
    page.get_by_label("Horizontal").select_option("model.activation")
    see_all(page)
    ticks = figure(page, "Runs against each other, final values").locator(".xtick text")
    assert [tick.text_content() for tick in ticks.all()] == [f"{attack}{number}" for number in range(2)]
    assert page.title() == "2 runs over activation"
    assert page.locator("img").count() == 0
    assert page.locator("#runs tbody th button").first.inner_text() == "0<img src=x onerror=document.title='broken'>"
