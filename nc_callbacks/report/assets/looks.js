"use strict";
/* One run's classes, look by look: heat maps, cosines, μ and σ, spectra, all at the slider's epoch. */

const MAX_LINES = 10;
const SECONDS_A_LOOK = 0.4;
const TALL = 420;
const shown = { run: RUNS.find((run) => run.looks.length), split: "train", place: "", epoch: 1 };
let lookCharts = [];

function looksOf(name, place = shown.place) {
  return shown.run.looks.find((look) => look.name === name && look.split === shown.split && look.place === place);
}

function lookPlaces() {
  return distinct(shown.run.looks.filter((look) => look.split === shown.split), "place").sort(headFirst);
}

function lookEpochs() {
  const looks = shown.run.looks.filter((look) => look.split === shown.split);
  return [...new Set(looks.flatMap((look) => look.epochs))].sort((a, b) => a - b);
}

/** The i-th entry's class, or its classes where an entry stands for several. */
function classText(i, step, vector) {
  return step > 1 && !vector ? `classes ${i * step} to ${(i + 1) * step - 1}` : `class ${i * step}`;
}

function quantile(sorted, share) {
  const at = share * (sorted.length - 1);
  const low = Math.floor(at);
  return sorted[low] + (at - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]);
}

/** A value of each class over the looks: lines, or bands of quantiles where there are many classes. */
function overEpochs(name, unit) {
  const looks = looksOf(name);
  if (!looks) return { traces: [] };
  const rows = looks.epochs.map((_, row) => entries(looks, row));
  const here = { type: "line", x0: shown.epoch, x1: shown.epoch, yref: "paper", y0: 0, y1: 1, line: { color: theme("muted"), width: 1, dash: "dot" } };
  const layout = { height: TALL, xaxis: epochAxis(looks.epochs), yaxis: axis(unit), hovermode: "closest", shapes: [here] };
  const k = looks.shape[0];
  const last = rows.at(-1).filter(Number.isFinite);
  const summary = `${k} classes; last look from ${short(Math.min(...last))} to ${short(Math.max(...last))}.`;
  if (k <= MAX_LINES) {
    const traces = Array.from({ length: k }, (_, c) => {
      const values = { x: looks.epochs, y: rows.map((row) => (Number.isFinite(row[c]) ? row[c] : null)) };
      return line(values, `class ${c}`, c);
    });
    const text = (c) => (traces[c].y.some(Number.isFinite) ? String(c) : `${c}: no samples`);
    return { traces, layout, summary, legend: traces.map((_, c) => ({ mark: swatch(c), text: text(c) })) };
  }
  const sorted = rows.map((row) => row.filter(Number.isFinite).sort((a, b) => a - b));
  const at = (share) => sorted.map((values) => quantile(values, share));
  const percent = (share) => `${100 * share} % of classes below`;
  const band = (low, high, opacity) => [
    { x: looks.epochs, y: at(low), meta: percent(low), mode: "lines", line: { width: 0 }, hoverinfo: "skip" },
    { x: looks.epochs, y: at(high), meta: percent(high), mode: "lines", line: { width: 0 }, hoverinfo: "skip", fill: "tonexty", fillcolor: withOpacity(theme("series-0"), opacity) },
  ];
  const median = line({ x: looks.epochs, y: at(0.5) }, "median class", 0);
  const note = `Median class; bands hold 50 %, 80 % and all of ${k} classes${looks.step > 1 ? ` (one in ${looks.step})` : ""}.`;
  return { traces: [...band(0, 1, 0.14), ...band(0.1, 0.9, 0.2), ...band(0.25, 0.75, 0.3), median], layout, note, summary };
}

/** A range that holds the entries of every look, so that axes stand still while looks are played. */
function rangeOverLooks(all, transform = (values) => values) {
  const values = all.flatMap((looks) => looks.epochs.flatMap((_, row) => transform(entries(looks, row)))).filter(Number.isFinite);
  if (!values.length) return undefined;
  const [low, high] = [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
  const margin = 0.06 * (high - low || Math.abs(high) || 1);
  return [low - margin, high + margin];
}

/** Per-class vectors at the slider's epoch: a mark a class, and a line at each mean. */
function byClass(unit, metrics, height) {
  const found = metrics
    .map(([name, text], index) => ({ text, index, looks: looksOf(name) }))
    .map((item) => ({ ...item, values: item.looks && entriesAt(item.looks, shown.epoch) }))
    .filter((item) => item.values);
  if (!found.length) return { traces: [] };
  const shapes = [];
  const traces = found.map(({ text, index, looks, values }) => {
    const { color, symbol } = style(index);
    const finite = values.filter(Number.isFinite);
    const mean = finite.reduce((sum, value) => sum + value, 0) / finite.length;
    if (finite.length) shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, y0: mean, y1: mean, line: { color, width: 1, dash: DASHES[index] } });
    return {
      x: values.map((_, i) => i * looks.step),
      y: values,
      name: text,
      meta: text,
      mean,
      mode: "markers",
      marker: { color, symbol, size: values.length <= 30 ? 8 : values.length <= 100 ? 5 : 3.5 },
    };
  });
  const step = found[0].looks.step;
  return {
    traces,
    layout: {
      ...(height && { height }),
      hovermode: "closest",
      shapes,
      xaxis: axis("class", { range: [-0.6, found[0].values.length * step - 0.4], ...(found[0].values.length <= 12 && { dtick: 1 }) }),
      yaxis: axis(unit, { range: rangeOverLooks(found.map(({ looks }) => looks)) }),
    },
    legend: traces.map(({ name, mean }, i) => ({ mark: swatch(found[i].index, DASHES[found[i].index]), text: `${name}, mean ${short(mean)}` })),
    note: step > 1 ? `One class in ${step}.` : "",
    summary: `Epoch ${shown.epoch}: ${traces.map(({ name, mean }) => `${name}, mean ${short(mean)}`).join("; ")}.`,
  };
}

/** A dotted line at k − 1 directions. */
function directionsAtCollapse() {
  const k = shown.run.numClasses;
  return k ? [{ type: "line", x0: k - 1, x1: k - 1, yref: "paper", y0: 0, y1: 1, line: { color: theme("muted"), width: 1.2, dash: "dot" } }] : [];
}

/** Spectra of every layer at the slider's epoch. */
function spectrum(name, unit, log) {
  const [kept, transform] = DERIVED[name] ?? [name, (values) => values];
  const lines = lookPlaces()
    .map((place, index) => ({ place, index, looks: looksOf(kept, place) }))
    .map((item) => ({ ...item, values: item.looks && entriesAt(item.looks, shown.epoch) }))
    .filter((item) => item.values);
  if (!lines.length) return { traces: [] };
  const drawn = lines.map(({ place, index, values }) => {
    const y = transform(values);
    return line({ x: y.map((_, i) => i + 1), y }, place, index);
  });
  const found = lines.map(({ looks }) => looks);
  const all = found.flatMap((looks) => looks.epochs.flatMap((_, row) => transform(entries(looks, row)))).filter((value) => value > 0);
  const logRange = (values) => [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))].map((end, i) => Math.log10(end) + (i ? 0.08 : -0.08));
  const directions = [1, found.reduce((largest, { shape }) => Math.max(largest, shape[0]), Math.max(2, (shown.run.numClasses ?? 0) - 1))];
  return {
    traces: drawn,
    layout: {
      hovermode: "closest",
      xaxis: { ...logAxis("direction", directions), range: logRange(directions) },
      yaxis: log && all.length ? { ...logAxis(unit, all), range: logRange(all) } : axis(unit, { range: rangeOverLooks(found, transform) }),
      shapes: directionsAtCollapse(),
    },
    legend: lines.map(({ place, index }) => ({ mark: swatch(index), text: place })),
    note: shown.run.numClasses ? `Dotted: k − 1 = ${shown.run.numClasses - 1}.` : "",
    summary: `Epoch ${shown.epoch}.`,
  };
}

/** Square roots of the shares, as far as they are more than rounding. */
function singularValues(shares) {
  return shares.filter((share) => share > 1e-14).map(Math.sqrt);
}

function cumulative(values) {
  let sum = 0;
  return values.map((value) => (sum += value));
}

/** The table of fixed samples (Lindegaard's Table 1), up to twelve classes wide. */
function drawSamples() {
  const place = document.getElementById("samples");
  const looks = looksOf("sqi_samples", HEAD);
  const values = looks && entriesAt(looks, shown.epoch);
  place.replaceChildren();
  if (!values || looks.shape[1] > 15) return;
  const width = looks.shape[1];
  const head = ["sample", "label", "ε", ...Array.from({ length: width - 3 }, (_, c) => `ε̃, class ${c}`)];
  const table = element("table", {}, element("caption", {}, "Errors of the samples that were asked for, times 10³"));
  table.append(element("thead", {}, element("tr", {}, ...head.map((text) => element("td", { class: "number" }, text)))));
  const body = rowsOf(values, width).map((row) =>
    element("tr", {}, ...row.map((value, i) => element("td", { class: "number" }, i < 2 ? String(value) : Number.isFinite(value) ? short(1000 * value) : ""))),
  );
  table.append(element("tbody", {}, ...body));
  place.append(table);
}

/** What is not kept, since another vector gives it: which one, and how. */
const DERIVED = {
  singular_values: ["explained_variance", singularValues],
  cumulative_explained_variance: ["explained_variance", cumulative],
};

/** What must have been recorded, title, what is drawn: the panels of some rows of the registry. */
function panelsOf({ title, unit, log, limit, ideal, axis: along, overEpochs: over, metrics }) {
  const [name] = metrics.map((metric) => metric.name);
  if (along === "class × class") {
    return [
      [name, title, () => heatMap(name, limit, ideal)],
      [name, `${title}: how many pairs`, () => histogram(name, unit, ideal), () => hasHistogram(name)],
    ];
  }
  if (along === "direction") return [[DERIVED[name]?.[0] ?? name, title, () => spectrum(name, unit, log)]];
  const each = [name, title, () => byClass(unit, metrics.map((metric) => [metric.name, metric.label]), over ? TALL : 0)];
  return over ? [[name, over, () => overEpochs(name, unit)], each] : [each];
}

function drawLooks() {
  lookCharts.forEach((chart) => chart.refresh());
  drawSamples();
  remember();
}

/** Slider and «Play». */
function addSlider(parent) {
  const slider = element("input", { type: "range", id: "epoch", min: "0", step: "1", "aria-label": "Look" });
  const output = element("output", { for: "epoch" });
  const play = element("button", { type: "button", id: "play", "aria-pressed": "false" }, "▶ Play");
  let timer = null;
  const move = (place) => {
    const epochs = lookEpochs();
    slider.max = String(epochs.length - 1);
    slider.value = String(Math.min(place, epochs.length - 1));
    shown.epoch = epochs[Number(slider.value)] ?? 0;
    output.textContent = `epoch ${shown.epoch}`;
    slider.setAttribute("aria-valuetext", output.textContent);
    drawLooks();
  };
  const stop = () => {
    clearInterval(timer);
    timer = null;
    play.textContent = "▶ Play";
    play.setAttribute("aria-pressed", "false");
  };
  play.addEventListener("click", () => {
    if (timer) return stop();
    if (slider.value === slider.max) move(0);
    play.textContent = "❚❚ Pause";
    play.setAttribute("aria-pressed", "true");
    timer = setInterval(() => (slider.value === slider.max ? stop() : move(Number(slider.value) + 1)), 1000 * SECONDS_A_LOOK);
  });
  slider.addEventListener("input", () => {
    stop();
    move(Number(slider.value));
  });
  parent.append(element("div", { class: "group player" }, play, slider, output));
  return move;
}

/** Whether a look of this name is there for what is chosen; of spectra, at any layer. */
function isShown(name) {
  return shown.run.looks.some((look) => look.name === name && look.split === shown.split && (look.place === shown.place || name === "explained_variance"));
}

function addLooks() {
  if (!shown.run) {
    document.getElementById("looks-lead").textContent = "No looks.npz was found: the vectors and matrices of the looks were not recorded.";
    return;
  }
  const controls = document.getElementById("look-controls");
  const splits = splitsIn(shown.run.looks);
  const runs = RUNS.filter((run) => run.looks.length);
  const choose = (run, split, place) => {
    shown.run = RUNS[Number(run)];
    shown.split = split;
    shown.place = place ?? lookPlaces()[0];
    const epochs = lookEpochs();
    shown.epoch = epochs.at(-1) ?? 0;
    return epochs;
  };
  choose(RUNS.indexOf(shown.run), splits[0]);
  Object.assign(usual, { run: String(RUNS.indexOf(shown.run)), split: shown.split, layer: shown.place, epoch: String(shown.epoch) });
  choose(askedAmong("run", runs.map((run) => String(RUNS.indexOf(run))), usual.run), askedAmong("split", splits, splits[0]));
  shown.place = askedAmong("layer", lookPlaces(), lookPlaces()[0]);
  const first = Number(askedAmong("epoch", lookEpochs().map(String), String(shown.epoch)));
  const last = Number.MAX_SAFE_INTEGER;
  if (CONTENT.sweep) {
    const options = runs.map((run) => [String(RUNS.indexOf(run)), run.label]);
    choice(controls, "look-run", "Run", options, String(RUNS.indexOf(shown.run)), (value) => {
      shown.run = RUNS[Number(value)];
      move(last);
    });
  }
  if (splits.length > 1) {
    choice(controls, "look-split", "Split", splits.map((split) => [split, split]), shown.split, (value) => {
      shown.split = value;
      move(last);
    });
  }
  const places = lookPlaces();
  if (places.length > 1) {
    choice(controls, "look-layer", "Layer", places.map((place) => [place, place]), shown.place, (value) => {
      shown.place = value;
      drawLooks();
    });
  }
  const move = addSlider(controls);
  const grid = document.getElementById("look-panels");
  const recorded = new Set(RUNS.flatMap((run) => run.looks.map((look) => look.name)));
  const panels = CONTENT.lookPanels.flatMap(panelsOf).filter(([name]) => recorded.has(name));
  lookCharts = panels.map(([name, title, content, isThere]) => new Chart(grid, title, content, [], isThere ?? (() => isShown(name))));
  move(lookEpochs().indexOf(first));
}
