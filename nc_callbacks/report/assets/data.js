"use strict";
/* The runs' arrays, decoded when they are first read, and the choices that every chart follows. */

const CONTENT = JSON.parse(document.getElementById("payload").textContent);
const RUNS = CONTENT.runs;

/** Typed array of a base64 text; the bytes are little-endian, as are the processors browsers run on. */
function decoded(text, Kind) {
  return new Kind(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
}

/** Replace a base64 field by the array it stands for, once. */
function unpacked(holder, field, Kind) {
  if (typeof holder[field] === "string") holder[field] = decoded(holder[field], Kind);
  return holder[field];
}

/** Epochs and values of a run's curve; null where a value was not finite, which leaves a gap. */
function points(run, curve) {
  if (!curve.points) {
    const epochs = unpacked(run.epochs, curve.epochs, Int32Array);
    const values = unpacked(curve, "values", Float32Array);
    const y = Array.from(values, (value) => (Number.isFinite(value) ? value : null));
    curve.points = { x: Array.from(epochs), y, flat: Boolean(curve.flat) };
  }
  return curve.points;
}

/** The last value that was finite. */
function lastFinite(values) {
  return values.findLast(Number.isFinite);
}

/** What a run kept of a look: the entries after an epoch (the last look that is not later), or null before the first. */
function entriesAt(looks, epoch) {
  const row = looks.epochs.findLastIndex((e) => e <= epoch);
  return row < 0 ? null : entries(looks, row);
}

/** The entries of one look as numbers, row by row; NaN where there are none. */
function entries(looks, row) {
  const size = looks.shape.reduce((product, side) => product * side, 1);
  const values = unpacked(looks, "values", looks.scale ? Int16Array : Float32Array);
  const part = Array.from(values.subarray(row * size, (row + 1) * size));
  return looks.scale ? part.map((q) => (q === -32768 ? NaN : q * looks.scale)) : part;
}

/** A list of numbers as rows of `width`. */
function rowsOf(list, width) {
  return Array.from({ length: list.length / width }, (_, row) => list.slice(row * width, (row + 1) * width));
}

/** The distinct values of a field, in the order in which they come. */
function distinct(things, field) {
  return [...new Set(things.map((thing) => thing[field]))];
}

const allCurves = RUNS.flatMap((run) => run.curves);
/** "train", "val", "test", each with its loaders where there are several ("val, loader 1"). */
function splitsIn(things) {
  const order = (split) => ["train", "val", "test"].indexOf(split.split(",")[0]);
  return distinct(things, "split").filter(Boolean).sort((a, b) => order(a) - order(b) || a.localeCompare(b, undefined, { numeric: true }));
}

const SPLITS = splitsIn(allCurves);
const HEAD = "classifier's input";
const headFirst = (a, b) => (b === HEAD) - (a === HEAD);
/** Layers up to which all are shown as the page opens; of more, the chapter over depth shows them side by side. */
const MAX_PLACES = 4;
const PLACES = distinct(allCurves.filter((curve) => !curve.own), "place").sort(headFirst);

const state = {
  log: true,
  logEpochs: false,
  splits: new Set(CONTENT.sweep ? SPLITS.slice(0, 1) : SPLITS),
  places: new Set(CONTENT.sweep || PLACES.length > MAX_PLACES ? PLACES.slice(0, 1) : PLACES),
  hidden: new Set(),
  colourBy: "run",
  /* Whether runs that differ by their seed alone are one line, with a band. */
  seeds: false,
};

/** Three digits, and a power of ten far from 1, as in the page's text. */
function short(value, digits = 3) {
  if (!Number.isFinite(value)) return "not finite";
  const size = Math.abs(value);
  if (size === 0 || (size >= 1e-3 && size < 1e5)) return String(size >= 10 ** digits ? Math.round(value) : Number(value.toPrecision(digits))).replace("-", "−");
  const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
  const power = `10${[...String(Number(exponent))].map((letter) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(letter)]).join("")}`;
  const factor = String(Number(mantissa)).replace("-", "−");
  return { 1: power, "−1": `−${power}` }[factor] ?? `${factor} · ${power}`;
}

/**
 * Texts in place of ticks' labels, so that there is one format of numbers: plotly asks for each label whether there is
 * one. What was asked for is kept, so that a copy of this object, as in a saved picture, has it too.
 */
const LABELS = new Proxy(
  {},
  {
    getOwnPropertyDescriptor(known, text) {
      const [, sign, factor, power] = /^([−-]?)(?:(\d*\.?\d*)(?:×|(?=e)))?(?:10<sup>|e)([−-]?\d+)(?:<\/sup>)?$/.exec(text) ?? [];
      const value = power === undefined ? text : `${sign && "-"}${factor || 1}e${power.replace("−", "-")}`;
      if (power !== undefined || /^[−-]?0\.000\d+$/.test(text)) known[text] ??= short(Number(value.replace("−", "-")), 9);
      return Reflect.getOwnPropertyDescriptor(known, text);
    },
  },
);

/** Two places after the point, without a zero that is negative. */
function hundredths(value) {
  return value.toFixed(2).replace(/^-0.00$/, "0.00").replace("-", "−");
}

/** An element with attributes and children; text is set as text, never as markup. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}
