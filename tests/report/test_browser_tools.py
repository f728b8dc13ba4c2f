"""What can be done with a chart in headless Chromium: read it, zoom, take it along, and link to it."""

import csv
import io
import re

import numpy as np
import pytest

from tests.report.chromium import browser, figure, opened, plotted, wait_until
from tests.report.common import curves, make_run, make_sweep, write_looks

__all__ = ["browser", "opened"]
pytestmark = pytest.mark.slow
NC1 = "Within-class variability"
COSINES = "Cosines of the centred class means"


def middle(found):
    """Where the pointer is in the middle of a chart's axes."""
    box = found.locator(".nsewdrag").first.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, box["width"]


def test_values_are_read_off_beside_the_curves(opened, tmp_path):
    page = opened(make_run(tmp_path / "run"))
    found = figure(page, "Accuracy")
    before = found.locator(".note").inner_text()
    x, y, _ = middle(found)
    page.mouse.move(x, y)
    page.mouse.move(x + 1, y)
    wait_until(page, "Boolean(document.querySelector('.reading'))")
    note = found.locator(".note").inner_text()
    epoch = int(re.match(r"epoch (\d+) · ", note)[1])
    train = curves()["nc/train/accuracy"][epoch - 1]
    assert f"train: {float(f'{train:.3g}'):g}" in note
    assert "val: " in note
    assert note.endswith("(share of samples)")
    assert found.locator(".hoverlayer text").count() == 0
    page.mouse.move(5, 5)
    wait_until(page, "!document.querySelector('.reading')")
    assert found.locator(".note").inner_text() == before


@pytest.mark.parametrize("blocks", [3, 8])
def test_of_many_layers_the_classifiers_input_is_shown_first(blocks, opened, tmp_path):
    found = curves()
    found |= {f"nc/train/blocks.{i}/nc1": found["nc/train/nc1"] * (i + 2) for i in range(blocks)}
    page = opened(make_run(tmp_path / "run", found=found))
    layers = page.get_by_role("button", name=re.compile(r"^(classifier's input|blocks\.\d)$")).all()
    pressed = [layer.inner_text() for layer in layers if layer.get_attribute("aria-pressed") == "true"]
    assert len(layers) == blocks + 1
    assert pressed == ["classifier's input"] if blocks > 3 else len(pressed) == blocks + 1


def test_a_finger_zooms_and_resets(opened, tmp_path):
    page = opened(make_run(tmp_path / "run"), 390, has_touch=True, is_mobile=True)
    found = figure(page, NC1)
    assert plotted(page, NC1, "_fullLayout.dragmode") is False
    found.get_by_role("button", name="Zoom by touch").tap()
    assert plotted(page, NC1, "_fullLayout.dragmode") == "zoom"
    whole = plotted(page, NC1, "_fullLayout.xaxis.range")
    x, y, width = middle(found)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + width / 4, y, steps=4)
    page.mouse.up()
    wait_until(page, "Boolean(document.querySelector('.zoomed'))")
    part = plotted(page, NC1, "_fullLayout.xaxis.range")
    assert part[1] - part[0] == pytest.approx((whole[1] - whole[0]) / 4, rel=0.05)
    # What is enlarged stays so while something else is chosen.
    page.get_by_role("button", name="val", exact=True).tap()
    assert plotted(page, NC1, "_fullLayout.xaxis.range") == pytest.approx(part)
    found.get_by_role("button", name="Show all").tap()
    assert plotted(page, NC1, "_fullLayout.xaxis.range") == pytest.approx(whole)
    assert not found.get_by_role("button", name="Show all").is_visible()


def saved(page, found, button):
    with page.expect_download() as download:
        found.get_by_role("button", name=button).click()
    return download.value


def test_a_chart_is_saved_as_picture_and_table(opened, tmp_path):
    page = opened(make_run(tmp_path / "run"))
    found = figure(page, NC1)
    table = saved(page, found, "Save as a table")
    assert table.suggested_filename == "Within_class_variability.csv"
    rows = list(csv.reader(io.StringIO(table.path().read_text("utf-8-sig"))))
    assert rows[0] == ["series", "epoch", "dimensionless"]
    values = [float(value) for name, _, value in rows[1:] if name == "class-distance normalised variance, train"]
    np.testing.assert_allclose(values, curves()["nc/train/nc1_cdnv"], rtol=1e-6)
    picture = saved(page, found, "Save as a picture")
    assert picture.suggested_filename == "Within_class_variability.png"
    content = picture.path().read_bytes()
    assert content.startswith(b"\x89PNG")
    assert int.from_bytes(content[16:20], "big") >= 960
    table = saved(page, figure(page, COSINES), "Save as a table")
    row, column, value = list(csv.reader(io.StringIO(table.path().read_text("utf-8-sig"))))[2]
    assert (row, column) == ("class 0", "class 1")
    assert float(value) == pytest.approx(0.3, abs=1e-4)


def test_tables_run_no_formula(opened, tmp_path):
    page = opened(make_sweep(tmp_path / "sweep"))
    text = page.evaluate("csv([['=1+1', '-0.5', -2, 'a,\"b\"']])")
    assert text == '\'=1+1,-0.5,-2,"a,""b"""\r\n'


def test_a_link_shows_the_same(opened, tmp_path):
    folder = make_run(tmp_path / "run")
    page = opened(folder)
    assert "#" not in page.url
    page.get_by_role("switch", name="Log values").click()
    page.get_by_role("button", name="val", exact=True).click()
    page.get_by_role("slider", name="Look").focus()
    page.keyboard.press("ArrowLeft")
    wait_until(page, "location.hash.includes('epoch=2')")
    page.locator("nav a", has_text="Curves").click()
    wait_until(page, "location.hash.startsWith('#curves?')")
    address = page.url
    other = page.context.new_page()
    other.goto(address)
    wait_until(other, "Boolean(window.Plotly)")
    assert other.get_by_role("switch", name="Log values").get_attribute("aria-checked") == "false"
    assert len(plotted(other, NC1, "data")) == 2
    assert other.locator("output").inner_text() == "epoch 2"
    other.get_by_role("switch", name="Log values").click()
    other.get_by_role("button", name="val", exact=True).click()
    other.get_by_role("slider", name="Look").focus()
    other.keyboard.press("End")
    wait_until(other, "location.hash === '#curves'")


def test_a_link_to_a_sweep_and_one_that_was_made_up(opened, tmp_path):
    page = opened(make_sweep(tmp_path / "sweep"))
    page.get_by_label("Colour by").select_option("model.activation")
    page.get_by_label("Horizontal").select_option("seed")
    page.get_by_role("button", name="1 (activation=tanh, seed=1)").click()
    wait_until(page, "location.hash.includes('hidden=1')")
    other = page.context.new_page()
    other.goto(page.url)
    wait_until(other, "Boolean(window.Plotly)")
    assert other.get_by_label("Colour by").input_value() == "model.activation"
    assert other.get_by_label("Horizontal").input_value() == "seed"
    assert other.evaluate("[...state.hidden].map(run => run.name)") == ["1"]
    third = page.context.new_page()
    third.goto(page.url.split("#")[0] + "#?splits=9&hidden=99.x&colour=no&x=%3Cb%3E&epoch=7&run=77")
    wait_until(third, "Boolean(window.Plotly)")
    assert third.evaluate("state.hidden.size") == 0
    assert third.get_by_label("Colour by").input_value() == "run"
    assert len(plotted(third, f"{NC1}: tr(Σ_W Σ_B⁺)/k", "data")) == 4


def test_mean_and_band_over_seeds(opened, tmp_path):
    page = opened(make_sweep(tmp_path / "sweep"))
    page.get_by_role("switch", name="Mean over seeds").click()
    traces = plotted(page, f"{NC1}: tr(Σ_W Σ_B⁺)/k", "data")
    lines = [trace for trace in traces if trace.get("meta")]
    assert [line["meta"] for line in lines] == ["activation=tanh (2 runs)", "activation=relu (2 runs)"]
    each = [curves(last_nc1=last)["nc/train/nc1"] for last in (0.02, 0.04)]
    np.testing.assert_allclose(lines[0]["y"], np.mean(each, 0), rtol=1e-6)
    # A closed shape: the largest, and the least on the way back.
    np.testing.assert_allclose(traces[0]["y"], [*np.max(each, 0), *np.min(each, 0)[::-1]], rtol=1e-6)
    assert page.locator("#colours li").all_inner_texts() == ["activation=tanh", "activation=relu", "activation=none"]


def test_the_first_column_stays(opened, tmp_path):
    page = opened(make_sweep(tmp_path / "sweep"), 390)
    left = "document.querySelector('#runs tbody th').getBoundingClientRect().left"
    before = page.evaluate(left)
    page.evaluate("document.querySelector('#runs .table').scrollLeft = 300")
    assert page.evaluate(left) == before
    assert page.evaluate("document.querySelector('#runs tbody td').getBoundingClientRect().left") < before


def test_axes_stand_still_while_looks_are_played(opened, tmp_path):
    page = opened(make_run(tmp_path / "run"))
    titles = ("Class means: μ", "Singular values (squares add up to 1)", "Cos(w_c, μ_c) of each class")
    ranges = [plotted(page, title, "_fullLayout.yaxis.range") for title in titles]
    page.get_by_role("slider", name="Look").focus()
    page.keyboard.press("Home")
    assert plotted(page, titles[0], "data[0].y") == pytest.approx([1, 1.001, 1.002, 1.003])
    assert [plotted(page, title, "_fullLayout.yaxis.range") for title in titles] == ranges


def test_many_classes_have_a_histogram_beside_the_matrix(opened, tmp_path):
    folder = make_run(tmp_path / "run")
    write_looks(folder / "looks.npz", classes=100, step=10)
    page = opened(folder)
    bars = plotted(page, f"{COSINES}: how many pairs", "data[0]")
    # All pairs have 0.3 at the last look, and 0.01 and 0.02 before.
    assert bars["y"][-1] == pytest.approx(1)
    assert bars["x"][-1] == pytest.approx(0.3, abs=0.01)
    assert plotted(page, COSINES, "data[0].zmax") == pytest.approx(0.3, abs=1e-3)
    assert "±0.3" in figure(page, COSINES).locator(".note").inner_text()


def test_no_tick_stands_between_epochs(opened, tmp_path):
    folder = make_run(tmp_path / "run", found=curves(3))
    page = opened(folder)
    assert figure(page, NC1).locator(".xtick text").all_text_contents() == ["1", "2", "3"]


TICKS = """([low, high, type]) => Plotly.newPlot(document.createElement("div"), [{ x: [1], y: [1] }], {
  width: 400, height: 300, yaxis: axis("", { range: [low, high], autorange: false, type }),
}).then((plot) => plot._fullLayout.yaxis._vals.map(({ text }) => text))"""


@pytest.mark.parametrize(
    ("low", "high", "kind", "expected"),
    [
        (0, 8.7e-4, "linear", ["0", "2 · 10⁻⁴", "4 · 10⁻⁴", "6 · 10⁻⁴", "8 · 10⁻⁴"]),
        (-9e-4, 9e-4, "linear", ["−5 · 10⁻⁴", "0", "5 · 10⁻⁴"]),
        (3.1e-6, 3.12e-6, "linear", ["3.1 · 10⁻⁶", "3.105 · 10⁻⁶", "3.11 · 10⁻⁶", "3.115 · 10⁻⁶", "3.12 · 10⁻⁶"]),
        (0, 23000, "linear", ["0", "5000", "10000", "15000", "20000"]),
        (0, 230000, "linear", ["0", "50000", "10⁵", "1.5 · 10⁵", "2 · 10⁵"]),
        (-13, 0, "log", ["10⁻¹²", "10⁻⁹", "10⁻⁶", "0.001", "1"]),
        (-1, 1, "linear", ["−1", "−0.5", "0", "0.5", "1"]),
    ],
)
def test_ticks_have_the_pages_own_format(opened, tmp_path, low, high, kind, expected):
    page = opened(make_run(tmp_path / "run"))
    assert page.evaluate(TICKS, [low, high, kind]) == expected
    # A copy, as a saved picture makes one, knows them too.
    assert set(page.evaluate("Object.values({ ...LABELS })")) >= {
        text for text in expected if "10" in text and "·" in text
    }


def test_no_zero_is_negative(opened, tmp_path):
    page = opened(make_run(tmp_path / "run"))
    assert page.evaluate("[-0.004, 0.004, -0.006].map(hundredths)") == ["0.00", "0.00", "−0.01"]
