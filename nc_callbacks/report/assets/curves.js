"use strict";
/* Every metric over epochs: of one run by split and layer, of a sweep by run. */

/** Which of the seven colours and four dashes a run has. */
function runStyle(run) {
  if (state.colourBy !== "run") return distinct(RUNS.map((r) => r.parameters), state.colourBy).indexOf(run.parameters[state.colourBy]);
  return state.seeds ? [...new Set(RUNS.map(setting))].indexOf(setting(run)) : RUNS.indexOf(run);
}

/** What sets a run apart from others, but for its seed. */
function setting(run) {
  const parts = CONTENT.parameters.filter((name) => name !== "seed").map((name) => `${name.split(".").at(-1)}=${run.parameters[name]}`);
  return parts.join(", ") || "all runs";
}

function shownRuns() {
  return RUNS.filter((run) => !state.hidden.has(run));
}

function curvesOf(run, name, own) {
  return run.curves
    .filter((curve) => curve.name === name && Boolean(own) === curve.own)
    .filter((curve) => (!curve.split || state.splits.has(curve.split)) && (own || state.places.has(curve.place)))
    .sort(inOrder);
}

function splitDash(split) {
  return DASHES[Math.max(SPLITS.indexOf(split), 0) % DASHES.length];
}

/** Curves by layer, the classifier's input first, then by split. */
function inOrder(a, b) {
  return PLACES.indexOf(a.place) - PLACES.indexOf(b.place) || SPLITS.indexOf(a.split) - SPLITS.indexOf(b.split);
}

/** What the colours of a panel mean; the dashes stand beside the choice of splits. */
function colourLegend(lines) {
  const keys = distinct(lines, "key").filter(Boolean);
  if (keys.length < 2) return [];
  return keys.map((key) => ({ mark: swatch(lines.find((l) => l.key === key).index, "solid"), text: key }));
}

/** What lies within standard errors of a curve, where they were logged: epochs, least and largest values. */
function bandOf(run, curve, metric) {
  const same = ({ name, split, place, own }) => name === metric.error && split === curve.split && place === curve.place && !own;
  const error = metric.error && run.curves.find(same);
  if (!error) return null;
  const [{ x, y }, of] = [points(run, curve), points(run, error)];
  const width = x.map((epoch) => CONTENT.band * (of.y[of.x.indexOf(epoch)] ?? NaN));
  const known = x.map((_, i) => i).filter((i) => Number.isFinite(y[i]) && Number.isFinite(width[i]));
  return { x: known.map((i) => x[i]), low: known.map((i) => y[i] - width[i]), high: known.map((i) => y[i] + width[i]) };
}

/** A band as a closed shape behind its line; on a logarithmic axis it ends at `least`. */
function bandTrace({ band: { x, low, high }, index }, least) {
  return {
    x: [...x, ...x.toReversed()],
    y: [...high, ...low.toReversed()].map((value) => Math.max(value, least)),
    mode: "lines",
    fill: "toself",
    fillcolor: `${theme(`series-${index % NUM_COLOURS}`)}33`,
    line: { width: 0 },
    hoverinfo: "skip",
  };
}

/** Lines of a panel: of one run, a colour a metric and layer, a dash a split. */
function linesOfRun(panel, own) {
  return panel.metrics.flatMap((metric, m) =>
    curvesOf(RUNS[0], metric.name, own).map((curve) => {
      const index = own ? m : m + panel.metrics.length * PLACES.indexOf(curve.place);
      const place = PLACES.length > 1 && !own ? curve.place : "";
      const key = [panel.metrics.length > 1 && metric.label, place].filter(Boolean).join(", ");
      const name = [key, curve.split].filter(Boolean).join(", ") || metric.label;
      return { name, key, index, dash: splitDash(curve.split), points: points(RUNS[0], curve), band: bandOf(RUNS[0], curve, metric) };
    }),
  );
}

/** Mean, least and largest of several curves, at the epochs that all of them have; missing where one is. */
function overSeeds(curves) {
  const places = curves.map(({ x }) => new Map(x.map((epoch, at) => [epoch, at])));
  const x = curves[0].x.filter((epoch) => places.every((place) => place.has(epoch)));
  const values = x.map((epoch) => curves.map(({ y }, c) => y[places[c].get(epoch)]));
  const of = (number) => values.map((found) => (found.every(Number.isFinite) ? number(found) : null));
  const mean = of((found) => found.reduce((sum, value) => sum + value, 0) / found.length);
  const known = x.flatMap((_, at) => (mean[at] === null ? [] : [at]));
  const edge = (end) => known.map((at) => end(...values[at]));
  const band = curves.length > 1 ? { x: known.map((at) => x[at]), low: edge(Math.min), high: edge(Math.max) } : null;
  return { points: { x, y: mean, flat: curves.every(({ flat }) => flat) }, band };
}

/** Lines of a metric, one of all runs that differ by their seed alone, with a band from the least to the largest. */
function linesOfSeeds(metric, own) {
  const groups = Map.groupBy(shownRuns(), setting);
  return [...groups].flatMap(([name, runs]) => {
    const index = runStyle(runs[0]);
    const found = runs.map((run) => curvesOf(run, metric.name, own).map((curve) => points(run, curve))).filter(({ length }) => length);
    const count = Math.max(0, ...found.map(({ length }) => length));
    return Array.from({ length: count }, (_, c) => {
      const curves = found.map((each) => each[c]).filter(Boolean);
      return { name: `${name} (${curves.length} runs)`, index, dash: style(index).dash, ...overSeeds(curves) };
    });
  });
}

/** Lines of a metric, a run each. */
function linesOfSweep(metric, own) {
  if (state.seeds) return linesOfSeeds(metric, own);
  return shownRuns().flatMap((run) => {
    const index = runStyle(run);
    const { dash } = style(index);
    return curvesOf(run, metric.name, own).map((curve) => ({ name: run.label, index, dash, points: points(run, curve), band: bandOf(run, curve, metric) }));
  });
}

/** A range that shows constant lines as such, however far their rounding is from 0. */
function aroundAll(lines) {
  const values = lines.flatMap(({ points: { y } }) => y).filter(Number.isFinite);
  const [low, high] = [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
  const margin = 0.5 * (Math.max(Math.abs(low), Math.abs(high)) > 1e-3 ? Math.max(Math.abs(low), Math.abs(high)) : 1);
  return [low - margin, high + margin];
}

/** Dotted lines at the values at collapse, as far as the axis has a place for them, and the epoch without error. */
function references(ideals, onLog) {
  const shapes = ideals
    .filter((value) => !onLog || value > 0)
    .map((value) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: value, y1: value, layer: "below", line: { color: theme("muted"), width: 1.2, dash: "dot" } }));
  const epoch = CONTENT.sweep ? null : RUNS[0].withoutError;
  if (epoch !== null) {
    shapes.push({ type: "line", x0: epoch, x1: epoch, yref: "paper", y0: 0, y1: 1, layer: "below", line: { color: theme("muted"), width: 1 } });
  }
  return shapes;
}

/** A range that holds the lines and the values at collapse. */
function rangeWith(lines, ideals) {
  const values = [...lines.flatMap(({ points: { y } }) => y).filter(Number.isFinite), ...ideals];
  const [low, high] = [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
  const margin = 0.05 * (high - low || 1);
  return [low - margin, high + margin];
}

/** What a chart of lines draws, with its note on values that a logarithmic axis cannot show. */
function lineChart(lines, unit, log, metrics = []) {
  const ideals = distinct(metrics, "ideal").filter((value) => Number.isFinite(value));
  const positive = (value) => value > 0;
  const onLog = state.log && log && lines.some(({ points: { y } }) => y.some(positive));
  const count = (test) => lines.reduce((sum, { points: { y } }) => sum + y.filter(test).length, 0);
  const lost = onLog ? count((value) => value !== null && value <= 0) : 0;
  const gaps = count((value) => value === null);
  const flat = lines.length > 0 && lines.every(({ points: found }) => found.flat);
  const valueAxis = () => {
    if (flat) return axis(unit, { range: aroundAll(lines) });
    if (onLog) return logAxis(unit, lines.flatMap(({ points: { y } }) => y));
    return axis(unit, ideals.length && lines.some(({ points: { y } }) => y.some(Number.isFinite)) ? { range: rangeWith(lines, ideals) } : {});
  };
  const last = lines.filter(({ points: { y } }) => y.length).map(({ name, points: { y } }) => `${name}: ${short(y.at(-1))}`);
  const bands = lines.filter(({ band }) => band?.x.length);
  const least = onLog ? lines.flatMap(({ points: { y } }) => y).filter(positive).reduce((a, b) => Math.min(a, b)) / 2 : -Infinity;
  return {
    traces: [
      ...bands.map((banded) => bandTrace(banded, least)),
      ...lines.map(({ name, index, dash, points: found }) => line(found, name, index, { dash })),
    ],
    layout: {
      xaxis: epochAxis(lines.flatMap(({ points: { x } }) => x)),
      yaxis: valueAxis(),
      shapes: lines.length ? references(ideals, onLog) : [],
    },
    legend: colourLegend(lines),
    note: [
      lost ? `${lost} values at or below 0 have no place on a logarithmic axis.` : "",
      gaps ? `${gaps} values were not finite: the lines are open there.` : "",
      flat ? "Constant, up to rounding." : "",
      bands.length ? (state.seeds ? "Mean over seeds; bands from the least to the largest." : `Bands: ± ${CONTENT.band} standard errors.`) : "",
      ideals.length ? `At collapse ${ideals.map((value) => short(value)).join(", ")}${onLog && !ideals.some((value) => value > 0) ? "" : " (dotted)"}.` : "",
    ]
      .filter(Boolean)
      .join(" "),
    summary: last.length > 8 ? `${last.length} lines.` : `Last values: ${last.join("; ")}.`,
  };
}

function addCurveSection(parent, section) {
  const grid = element("div", { class: "grid" });
  const about = element("div", {}, element("h3", {}, section.title), element("p", { class: "about" }, section.text));
  parent.append(element("div", { class: "chapter", id: `curves-${section.title}` }, about, grid));
  for (const panel of section.panels) {
    if (!CONTENT.sweep) {
      const content = () => lineChart(linesOfRun(panel, section.own), panel.unit, panel.log, panel.metrics);
      const isThere = () => panel.metrics.some(({ name }) => curvesOf(RUNS[0], name, section.own).length);
      new Chart(grid, panel.title, content, section.own ? [] : panel.metrics.map(({ name }) => name), isThere);
      continue;
    }
    for (const metric of panel.metrics) {
      const title = panel.metrics.length > 1 ? `${panel.title}: ${metric.label}` : panel.title;
      const content = () => lineChart(linesOfSweep(metric, section.own), panel.unit, panel.log, [metric]);
      const isThere = () => shownRuns().some((run) => curvesOf(run, metric.name, section.own).length);
      new Chart(grid, title, content, section.own ? [] : [metric.name], isThere);
    }
  }
}

/** A choice of splits or layers: of one run several at a time, of a sweep one. */
function pick(controls, text, options, chosen, mark) {
  if (options.length < 2) return;
  if (!CONTENT.sweep) return several(controls, text, options, chosen, mark, refreshAll);
  choice(controls, text.toLowerCase(), text, options.map((option) => [option, option]), [...chosen][0], (option) => {
    chosen.clear();
    chosen.add(option);
    refreshAll();
  });
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
  if (CONTENT.sweep && CONTENT.parameters.includes("seed")) {
    onOff(switches, "seeds", "Mean over seeds", state.seeds, (on) => {
      state.seeds = on;
      markButtons();
      refreshAll();
    });
  }
  pick(controls, "Split", SPLITS, state.splits, (split) => swatch(NUM_COLOURS - 1, splitDash(split)));
  pick(controls, "Layer", PLACES, state.places);
  if (!CONTENT.sweep && RUNS[0].withoutError !== null) {
    const text = `│ first epoch without training error: ${RUNS[0].withoutError}`;
    controls.append(element("span", { class: "caption-line" }, text));
  }
  const sections = CONTENT.sections.filter((section) => section.panels.length);
  for (const section of sections) addCurveSection(document.getElementById("curve-sections"), section);
  if (!sections.length) controls.replaceChildren("No metrics.csv was found: there are no curves.");
}
