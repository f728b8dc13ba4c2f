"use strict";
/* Values of pairs of classes: a heat map, and beside it how many pairs have which value. */

const BINS = 41;
/** Up to so many classes each cell has its number, and needs no histogram. */
const MAX_NUMBERED = 12;

/** Entries off the diagonal at every look, from the least to the largest, without those that are missing. */
function offDiagonal(looks) {
  if (!looks.off) {
    const [k] = looks.shape;
    looks.off = looks.epochs.map((_, row) =>
      Float64Array.from(entries(looks, row).filter((value, i) => i % (k + 1) && Number.isFinite(value))).sort(),
    );
  }
  return looks.off;
}

/** What colours span: 99 % of what is off the diagonal, over all looks, so that they mean the same at each. */
function spanOf(looks) {
  const ends = offDiagonal(looks).filter(({ length }) => length).map((values) => [quantile(values, 0.005), quantile(values, 0.995)]);
  return Math.max(1e-6, ...ends.flat().map(Math.abs));
}

function heatMap(name, limit, ideal) {
  const looks = looksOf(name);
  const values = looks && entriesAt(looks, shown.epoch);
  if (!values) return { traces: [] };
  const [k] = looks.shape;
  const range = k <= MAX_NUMBERED && limit ? limit : spanOf(looks);
  const names = Array.from({ length: k }, (_, i) => classText(i, looks.step));
  const off = values.filter((_, i) => i % (k + 1) && Number.isFinite(values[i]));
  const isAbsent = rowsOf(values, k).map((row) => !row.some(Number.isFinite));
  const absent = names.filter((_, i) => isAbsent[i]);
  const mean = off.reduce((sum, value) => sum + value, 0) / off.length;
  const largest = off.reduce((found, value) => Math.max(found, Math.abs(value)), 0);
  const numbers = k <= MAX_NUMBERED;
  return {
    traces: [
      {
        type: "heatmap",
        z: rowsOf(values, k).map((row) => row.map((value) => (Number.isFinite(value) ? value : null))),
        x0: (looks.step - 1) / 2,
        y0: (looks.step - 1) / 2,
        dx: looks.step,
        dy: looks.step,
        customdata: names.map((row) => names.map((column) => [row, column])),
        zmin: -range,
        zmax: range,
        colorscale: [[0, theme("series-0")], [0.5, theme("card")], [1, theme("series-1")]],
        colorbar: { labelalias: LABELS, orientation: "h", y: 1.02, yanchor: "bottom", thickness: 8, tickfont: { size: 10 }, outlinewidth: 0, nticks: 5 },
        ...(numbers && {
          text: rowsOf(values, k).map((row) => row.map((value) => (Number.isFinite(value) ? hundredths(value) : ""))),
          texttemplate: "%{text}",
          textfont: { size: 8 },
        }),
      },
    ],
    layout: {
      height: TALL,
      // What has no value is grey, and no colour of the scale.
      plot_bgcolor: theme("missing"),
      margin: { l: 40, r: 10, t: 30, b: 42 },
      hovermode: "closest",
      xaxis: axis("class", { showgrid: false, constrain: "domain", ...(numbers && { dtick: 1 }) }),
      yaxis: axis("class", { showgrid: false, constrain: "domain", autorange: "reversed", scaleanchor: "x", ...(numbers && { dtick: 1 }) }),
    },
    note: [
      Number.isFinite(ideal) ? `At collapse ${short(ideal)} off the diagonal.` : "",
      range < 1 ? `Colours span ±${short(range)}, 99 % of what is off the diagonal over all looks${largest > range ? `; here it goes to ${short(largest)}` : ""}.` : "",
      absent.length ? `Grey: no samples of ${absent.slice(0, 5).join(", ")}${absent.length > 5 ? ", …" : ""}.` : "",
      looks.step > 1 ? `A cell is the mean over ${looks.step} × ${looks.step} classes.` : "",
    ]
      .filter(Boolean)
      .join(" "),
    summary: `Epoch ${shown.epoch}: off the diagonal ${short(mean)} on average.`,
  };
}

/** Whether a matrix has too many classes for numbers in its cells. */
function hasHistogram(name) {
  return Boolean(looksOf(name)) && looksOf(name).shape[0] > MAX_NUMBERED;
}

/** How many pairs of classes have which value at the slider's epoch, on axes that are the same at each. */
function histogram(name, unit, ideal) {
  const looks = looksOf(name);
  const row = looks ? looks.epochs.findLastIndex((epoch) => epoch <= shown.epoch) : -1;
  if (row < 0) return { traces: [] };
  const all = offDiagonal(looks);
  const ends = all.flatMap((values) => (values.length ? [values[0], values.at(-1)] : []));
  const goals = Number.isFinite(ideal) ? [ideal] : [];
  const [low, high] = [Math.min(...ends, ...goals), Math.max(...ends, ...goals)];
  const width = (high - low || 1) / BINS;
  const shares = (values) => {
    const counts = new Array(BINS).fill(0);
    for (const value of values) counts[Math.min(BINS - 1, Math.floor((value - low) / width))] += 1 / values.length;
    return counts;
  };
  const top = Math.max(...all.map((values) => Math.max(...shares(values))));
  const here = all[row];
  const dotted = { type: "line", yref: "paper", y0: 0, y1: 1, line: { color: theme("muted"), width: 1.2, dash: "dot" } };
  return {
    traces: [
      {
        type: "bar",
        x: Array.from({ length: BINS }, (_, bin) => low + (bin + 0.5) * width),
        y: shares(here),
        meta: "share of pairs",
        marker: { color: theme("series-0") },
      },
    ],
    layout: {
      height: TALL,
      bargap: 0.05,
      hovermode: "closest",
      shapes: goals.map((goal) => ({ ...dotted, x0: goal, x1: goal })),
      xaxis: axis(unit, { range: [low - width, high + width] }),
      yaxis: axis("share of pairs of classes", { range: [0, 1.05 * top] }),
    },
    note: [
      here.length ? `From ${short(here[0])} to ${short(here.at(-1))}, half of the pairs between ${short(quantile(here, 0.25))} and ${short(quantile(here, 0.75))}.` : "",
      goals.length ? `At collapse ${short(ideal)} (dotted).` : "",
      looks.step > 1 ? `Of means over ${looks.step} × ${looks.step} classes, which spread less than single pairs.` : "",
    ]
      .filter(Boolean)
      .join(" "),
    summary: `Epoch ${shown.epoch}.`,
  };
}
