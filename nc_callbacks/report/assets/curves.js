"use strict";
/* Every metric over epochs: of one run by split and layer, of a sweep by run. */

/** Which of the seven colours and four dashes a run has. */
function runStyle(run) {
  const index = RUNS.indexOf(run);
  if (state.colourBy === "run") return index;
  return distinct(RUNS.map((r) => r.parameters), state.colourBy).indexOf(run.parameters[state.colourBy]);
}

function shownRuns() {
  return RUNS.filter((run) => !state.hidden.has(run));
}

function curvesOf(run, name, own) {
  return run.curves.filter(
    (curve) =>
      curve.name === name &&
      Boolean(own) === curve.own &&
      (!curve.split || state.splits.has(curve.split)) &&
      (own || state.places.has(curve.place)),
  );
}

/** Lines of a panel: of one run, a colour a metric and layer, a dash a split. */
function linesOfRun(panel, own) {
  return panel.metrics.flatMap((metric, m) =>
    curvesOf(RUNS[0], metric.name, own).map((curve) => {
      const index = own ? m : m + panel.metrics.length * PLACES.indexOf(curve.place);
      const dash = DASHES[Math.max(SPLITS.indexOf(curve.split), 0)];
      const place = PLACES.length > 1 && !own ? curve.place : "";
      const metricText = panel.metrics.length > 1 ? metric.label : "";
      const name = [metricText, curve.split, place].filter(Boolean).join(", ") || metric.label;
      return { name, index, dash, points: points(curve) };
    }),
  );
}

/** Lines of a metric: a line a run (and a layer, where several are chosen). */
function linesOfSweep(metric, own) {
  return shownRuns().flatMap((run) =>
    curvesOf(run, metric.name, own).map((curve) => {
      const place = state.places.size > 1 && !own ? `, ${curve.place}` : "";
      return { name: run.label + place, index: runStyle(run), dash: style(runStyle(run)).dash, points: points(curve) };
    }),
  );
}

/** What a chart of lines draws, with its note on values that a logarithmic axis cannot show. */
function lineChart(lines, unit, log, legend) {
  const positive = (value) => value > 0;
  const onLog = state.log && log && lines.some(({ points: { y } }) => y.some(positive));
  const lost = onLog ? lines.reduce((sum, { points: { y } }) => sum + y.filter((value) => !positive(value)).length, 0) : 0;
  const last = lines.filter(({ points: { y } }) => y.length).map(({ name, points: { y } }) => `${name}: ${short(y.at(-1))}`);
  return {
    traces: lines.map(({ name, index, dash, points: found }) => line(found, name, index, { dash })),
    layout: { xaxis: epochAxis(), yaxis: onLog ? logAxis(unit) : axis(unit) },
    legend: legend ? lines.map(({ name, index, dash }) => ({ mark: swatch(index, dash), text: name })) : [],
    note: lost ? `${lost} values at or below 0 have no place on a logarithmic axis.` : "",
    summary: last.length > 8 ? `${last.length} lines.` : `Last values: ${last.join("; ")}.`,
  };
}

function addCurveSection(parent, section) {
  const grid = element("div", { class: "grid" });
  parent.append(element("h3", {}, section.title), element("p", { class: "about" }, section.text), grid);
  for (const panel of section.panels) {
    if (!CONTENT.sweep) {
      new Chart(grid, panel.title, () => lineChart(linesOfRun(panel, section.own), panel.unit, panel.log, true));
      continue;
    }
    for (const metric of panel.metrics) {
      const title = panel.metrics.length > 1 ? `${panel.title}: ${metric.label}` : panel.title;
      new Chart(grid, title, () => lineChart(linesOfSweep(metric, section.own), panel.unit, panel.log, false));
    }
  }
}

function addCurves() {
  const controls = document.getElementById("curve-controls");
  const switches = element("div", { class: "group" });
  controls.append(switches);
  onOff(switches, "log", "Log values", state.log, (on) => {
    state.log = on;
    refreshAll();
  });
  onOff(switches, "log-epochs", "Log epochs", state.logEpochs, (on) => {
    state.logEpochs = on;
    refreshAll();
  });
  several(controls, "Split", SPLITS, state.splits, refreshAll);
  several(controls, "Layer", PLACES, state.places, refreshAll);
  const sections = CONTENT.sections.filter((section) => section.panels.length);
  for (const section of sections) addCurveSection(document.getElementById("curve-sections"), section);
  if (!sections.length) controls.replaceChildren("No metrics.csv was found: there are no curves.");
}
