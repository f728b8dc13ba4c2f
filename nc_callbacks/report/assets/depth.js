"use strict";
/* Metrics over the depth of one run's network: a line an epoch, the tunnel shaded. */

const DEPTH_EPOCHS = 6;

/** The split whose depth is shown: the first of those that are chosen. */
function depthShown() {
  return RUNS[0].depth.find(({ split }) => state.splits.has(split)) ?? null;
}

/** Some of many epochs: the first, the last, and between them ever fewer. */
function someOf(epochs) {
  const count = Math.min(DEPTH_EPOCHS, epochs.length);
  const rows = Array.from({ length: count }, (_, i) => Math.round(epochs.length ** (i / Math.max(1, count - 1))) - 1);
  return [...new Set(count === 1 ? [epochs.length - 1] : rows)].map((row) => epochs[row]);
}

/** What a chart of one metric over depth draws. */
function depthChart(metric) {
  const depth = depthShown();
  if (!depth || !depth.metrics.some(({ name }) => name === metric.name)) return { traces: [] };
  const found = depth.places.map((place) =>
    RUNS[0].curves.find((curve) => !curve.own && curve.name === metric.name && curve.split === depth.split && curve.place === place),
  );
  const layers = found.map((curve) => (curve ? points(RUNS[0], curve) : { x: [], y: [] }));
  const epochs = someOf([...new Set(layers.flatMap(({ x }) => x))].sort((a, b) => a - b));
  const traces = epochs.map((epoch, i) => {
    const y = layers.map(({ x, y: values }) => values[x.indexOf(epoch)] ?? null);
    const made = line({ x: depth.places, y }, `epoch ${epoch}`, i);
    return { ...made, mode: "lines+markers", marker: { color: made.line.color, size: 5, symbol: style(i).symbol } };
  });
  const values = traces.flatMap(({ y }) => y).filter(Number.isFinite);
  const onLog = state.log && metric.log && values.length > 0 && values.every((value) => value > 0);
  const shaded = depth.tunnel && { type: "rect", yref: "paper", y0: 0, y1: 1, x0: depth.tunnel.start, x1: depth.places.length - 1 };
  const ticks = { type: "category", categoryarray: depth.places, categoryorder: "array", tickangle: -40, automargin: true };
  return {
    traces,
    layout: {
      height: 330,
      xaxis: axis("", ticks),
      yaxis: onLog ? logAxis(metric.unit, values) : axis(metric.unit),
      shapes: shaded ? [{ ...shaded, layer: "below", line: { width: 0 }, fillcolor: theme("rule"), opacity: 0.6 }] : [],
    },
    legend: epochs.map((epoch, i) => ({ mark: swatch(i), text: `epoch ${epoch}` })),
    note: shaded
      ? `Shaded, the tunnel: from ${depth.places[depth.tunnel.start]} on the accuracy of the ${depth.tunnel.by} rises by no more than a point (last look).`
      : "",
    summary: `${depth.places.length} layers, ${depth.split}.`,
  };
}

function addDepth() {
  if (CONTENT.sweep || !RUNS[0].depth.length) return;
  const grid = element("div", { class: "grid" });
  const text = "Each metric from layer to layer, the classifier's input last: of the first of the chosen splits.";
  const about = element("div", {}, element("h3", {}, "Depth"), element("p", { class: "about" }, text));
  document.getElementById("curve-sections").append(element("div", { class: "chapter", id: "curves-Depth" }, about, grid));
  const metrics = new Map(RUNS[0].depth.flatMap((depth) => depth.metrics.map((metric) => [metric.name, metric])));
  for (const metric of metrics.values()) {
    const isThere = () => Boolean(depthShown()?.metrics.some(({ name }) => name === metric.name));
    new Chart(grid, `${metric.title}, over depth`, () => depthChart(metric), [metric.name], isThere);
  }
}
