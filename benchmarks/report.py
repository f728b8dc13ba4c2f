"""How long the page of a sweep takes to open: `python benchmarks/report.py [runs] [epochs] [classes]`.

Makes a sweep's folder with invented curves and looks, writes its page, and opens it in headless Chromium at the curves.
By the page's own clock, in seconds from navigation: until text and controls are there, until the first chart of the
curves is painted, and until all charts on the screen are.
"""

import csv
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from playwright.sync_api import sync_playwright
from speed.steps import announced

from nc_callbacks.callbacks.look_recorder import MAX_LOOKS, MAX_ROWS
from nc_callbacks.metrics import METRICS, LogKey
from nc_callbacks.report import write_report

PER_CLASS = ("wm_cosine", "mu1", "mu2", "sigma1", "sigma2")


def make_sweep(folder: Path, runs: int, epochs: int, classes: int) -> None:
    """Runs with all metrics of two splits after every epoch, and 40 looks."""
    generator = np.random.default_rng(0)
    names = [name for name, metric in METRICS.items() if metric.axis == "scalar"]
    keys = [str(LogKey(name, split)) for split in ("train", "val") for name in names]
    looks = np.unique(np.geomspace(1, epochs, MAX_LOOKS).astype(int))
    for run in range(runs):
        place = folder / str(run)
        (place / ".hydra").mkdir(parents=True)
        (place / ".hydra" / "overrides.yaml").write_text(f"- seed={run}\n")
        (place / ".hydra" / "config.yaml").write_text("data:\n  name: invented\n")
        values = np.exp(np.cumsum(0.05 * generator.normal(size=(epochs, len(keys))), 0))
        with open(place / "metrics.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["epoch", "step", *keys])
            writer.writerows([[epoch, epoch, *row] for epoch, row in enumerate(values)])
        summary = {
            "metrics": dict(zip(keys, values[-1], strict=True)),
            "epochs": epochs,
            "seconds": 1.0,
            "versions": {},
        }
        (place / "summary.json").write_text(json.dumps(summary))
        arrays = {}
        for split in ("train", "val"):
            rows = min(classes, MAX_ROWS)
            shapes = {f"{name}_per_class": (classes,) for name in PER_CLASS} | {"class_mean_cosines": (rows, rows)}
            for name, shape in shapes.items():
                key = f"nc/{split}/{name}"
                arrays[key] = generator.uniform(-1, 1, size=(len(looks), *shape)).astype(np.float32)
                arrays[f"{key}@epochs"], arrays[f"{key}@step"] = looks, np.array(1)
        np.savez(place / "looks.npz", **arrays)


MOMENTS = {"text and controls": "ready", "first curves": "first", "all charts on the screen": "screen"}

WATCH = """
window.moments = {};
const note = (moment) => requestAnimationFrame(() => (moments[moment] ??= performance.now() / 1000));
const onScreen = (figure) => {
  const { top, bottom } = figure.getBoundingClientRect();
  return bottom > 0 && top < innerHeight;
};
addEventListener("DOMContentLoaded", () => {
  moments.ready = performance.now() / 1000;
  document.getElementById("curves").scrollIntoView({ behavior: "instant" });
  new MutationObserver(() => {
    if (document.querySelector("#curve-sections .js-plotly-plot .lines")) note("first");
    const figures = [...document.querySelectorAll("figure")].filter(onScreen);
    if (figures.length && figures.every((figure) => figure.querySelector(".main-svg"))) note("screen");
  }).observe(document.body, { childList: true, subtree: true });
});
"""


def open_page(page_file: Path) -> list[float]:
    """Seconds to each of the moments."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.add_init_script(WATCH)
        page.goto(page_file.as_uri())
        # Asked seldom, so that asking takes no time from the page.
        while "screen" not in (moments := page.evaluate("moments")):
            time.sleep(1)
        browser.close()
    return [moments[name] for name in MOMENTS.values()]


def main() -> None:
    given = [int(argument) for argument in sys.argv[1:]]
    runs, epochs, classes = given + [20, 350, 10][len(given) :]
    with tempfile.TemporaryDirectory() as folder:
        make_sweep(Path(folder), runs, epochs, classes)
        start = time.perf_counter()
        page_file = write_report(folder)
        print(f"{runs} runs, {epochs} epochs, {classes} classes")
        print(f"page written in {time.perf_counter() - start:.1f} s, {page_file.stat().st_size / 1e6:.1f} MB")
        times = np.array([open_page(page_file) for _ in announced(range(5), "seconds each")])
        for name, column in zip(MOMENTS, times.T, strict=True):
            print(f"{name}: {np.median(column):.2f} s (median of 5), longest {column.max():.2f} s")


if __name__ == "__main__":
    main()
