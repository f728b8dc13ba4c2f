"use strict";
/* What all charts share: styles that read without colour, the scheme's colours, drawing when in view. */

const DASHES = ["solid", "dash", "dot", "dashdot"];
const STROKES = { solid: "", dash: "7 4", dot: "2 3", dashdot: "8 3 2 3" };
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "x", "star", "cross"];
const NUM_COLOURS = 7;

function theme(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function withOpacity(hex, opacity) {
  return `${hex}${Math.round(255 * opacity).toString(16).padStart(2, "0")}`;
}

/** Colour, dash and symbol of the i-th line: the seven colours first, then the same with the next dash. */
function style(i) {
  return {
    color: theme(`series-${i % NUM_COLOURS}`),
    dash: DASHES[Math.floor(i / NUM_COLOURS) % DASHES.length],
    symbol: SYMBOLS[(i + Math.floor(i / NUM_COLOURS)) % SYMBOLS.length],
  };
}

/** A short piece of a line, for legends and buttons; its colour follows the scheme. */
function swatch(i, dash = style(i).dash) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const line = document.createElementNS(space, "line");
  svg.setAttribute("class", "swatch");
  svg.setAttribute("aria-hidden", "true");
  const drawn = { x1: 0, x2: 26, y1: 5, y2: 5, "stroke-width": 2.5, "stroke-dasharray": STROKES[dash] };
  for (const [name, value] of Object.entries(drawn)) line.setAttribute(name, value);
  line.style.stroke = `var(--series-${i % NUM_COLOURS})`;
  svg.append(line);
  return svg;
}

function axis(title, more = {}) {
  return {
    title: { text: title, font: { size: 11, color: theme("muted") }, standoff: 6 },
    gridcolor: theme("rule"),
    linecolor: theme("rule"),
    tickfont: { size: 11, color: theme("muted") },
    automargin: true,
    exponentformat: "power",
    labelalias: LABELS,
    zeroline: false,
    ...more,
  };
}

/** A logarithmic axis with ticks at 1, 2 and 5, or at decades where there are many. */
function logAxis(title, values) {
  const logs = values.filter((value) => value > 0).map(Math.log10);
  const decades = logs.reduce((a, b) => Math.max(a, b), -Infinity) - logs.reduce((a, b) => Math.min(a, b), Infinity);
  if (decades > 3) return axis(title, { type: "log", dtick: Math.ceil(decades / 7) });
  return axis(title, { type: "log", tickformat: "~g", ...(decades > 0.8 && { dtick: "D2" }) });
}

/** Epochs, with a line where the pointer is. */
function epochAxis(epochs) {
  // There is no epoch one and a half.
  const few = epochs.every((epoch) => epoch <= 8);
  const pointed = { showspikes: true, spikemode: "across", spikethickness: 1, spikedash: "solid", spikecolor: theme("muted"), spikesnap: "data" };
  return { ...(state.logEpochs ? logAxis("epoch", epochs) : axis("epoch", few && { dtick: 1 })), ...pointed };
}

const charts = [];
/** Whether the page is on its way to paper, where all charts are drawn at once, as wide as their column. */
let printing = false;
const waiting = new Set();
const inView = new IntersectionObserver(
  (seen) => {
    for (const { target, isIntersecting } of seen) {
      target.chart.visible = isIntersecting;
      target.chart.await();
    }
  },
  { rootMargin: "200px" },
);

/** Run when what has been done so far has been painted. */
function afterPaint(task) {
  requestAnimationFrame(() => setTimeout(task));
}

/** Draw the charts that wait, one at a time, each seen at once; those that have left the view are left out. */
function drawNext() {
  const [chart] = waiting;
  waiting.delete(chart);
  if (chart.visible) chart.draw();
  if (waiting.size) afterPaint(drawNext);
}

/** A figure that is drawn when it comes into view, and again when something it shows has changed. */
class Chart {
  /**
   * @param {Element} parent
   * @param {string} title
   * @param {() => {traces, layout?, legend?, note?, summary?}} content what to draw now.
   * @param {string[]} keys the names in the log keys of what is drawn.
   * @param {() => boolean} isThere whether there is anything to draw now; a chart of nothing is hidden.
   */
  constructor(parent, title, content, keys = [], isThere = () => true) {
    this.content = content;
    this.isThere = isThere;
    this.stale = true;
    this.zooms = false;
    this.views = 0;
    this.said = "";
    this.legend = element("ul", { class: "legend" });
    this.plot = element("div", { class: "plot", role: "img" });
    this.note = element("p", { class: "note" });
    this.heading = element("h4", {}, title);
    const names = element("p", { class: "keys" }, keys.join(" · "));
    this.tools = element("div", { class: "tools", role: "group", "aria-label": title });
    const head = element("div", { class: "head" }, this.heading, this.tools);
    const caption = element("figcaption", {}, head, ...(keys.length ? [names] : []), this.legend);
    this.figure = element("figure", {}, caption, this.plot, this.note);
    this.figure.chart = this;
    this.figure.hidden = !isThere();
    addTools(this);
    parent.append(this.figure);
    charts.push(this);
    inView.observe(this.figure);
  }

  /** Draw again: soon if in view, else when it comes into view. */
  refresh() {
    this.figure.hidden = !this.isThere();
    this.stale = true;
    this.await();
  }

  /** Draw again at once, where it was drawn. */
  redraw() {
    if (this.plot.children.length) this.draw();
  }

  /** Forget what was drawn. */
  purge() {
    Plotly.purge(this.plot);
    this.listens = false;
  }

  await() {
    if (!this.visible || !this.stale || !window.Plotly) return;
    if (!waiting.size) afterPaint(drawNext);
    waiting.add(this);
  }

  draw() {
    this.stale = false;
    const { traces, layout = {}, legend = [], note = "", summary = "" } = this.content();
    this.legend.replaceChildren(...legend.map(({ mark, text }) => element("li", {}, mark, text)));
    this.said = note;
    this.note.textContent = note;
    for (const trace of traces) trace.hoverinfo ??= "none";
    const lines = traces.filter((trace) => trace.hoverinfo !== "skip");
    this.plot.setAttribute("aria-label", `${this.heading.textContent}. ${summary}`);
    const touch = matchMedia("(pointer: coarse)").matches;
    Plotly.react(
      this.plot,
      traces,
      {
        margin: { l: 58, r: 10, t: 10, b: 42 },
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: theme("ink") },
        hovermode: lines.length > 6 ? "closest" : "x",
        dragmode: touch && !this.zooms ? false : "zoom",
        // What was enlarged stays so while values change, until it is reset.
        uirevision: `${this.views} ${state.log} ${state.logEpochs}`,
        showlegend: false,
        ...layout,
        height: (layout.height ?? 270) * (printing ? 0.85 : 1),
        ...(printing && { width: this.plot.clientWidth }),
      },
      { responsive: true, displayModeBar: false },
    );
    if (!this.listens) listen(this);
    this.listens = true;
  }
}

/** Draw all charts as paper wants them: those out of view too, no wider than a column, dark on white. */
function beginPrinting() {
  if (printing) return;
  printing = true;
  document.documentElement.classList.add("printing");
  for (const chart of charts.filter(({ figure }) => !figure.hidden)) {
    chart.purge();
    chart.draw();
  }
}

/** Leave the charts to the screen again. */
function endPrinting() {
  printing = false;
  document.documentElement.classList.remove("printing");
  for (const chart of charts) chart.purge();
  refreshAll();
}

function refreshAll() {
  charts.forEach((chart) => chart.refresh());
  remember();
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", refreshAll);

/** A line over epochs, open where values are missing; one without a neighbour is a dot. */
function line({ x, y }, name, i, more = {}) {
  const { color, dash } = style(i);
  const alone = y.map((_, at) => !Number.isFinite(y[at - 1]) && !Number.isFinite(y[at + 1]));
  return {
    x,
    y,
    name: escapeMarkup(name),
    meta: name,
    mode: alone.some((is, at) => is && Number.isFinite(y[at])) ? "lines+markers" : "lines",
    connectgaps: false,
    line: { color, dash: more.dash ?? dash, width: 1.9 },
    marker: { color, size: alone.map((is) => (is ? 7 : 0)), line: { width: 0 } },
    ...more.trace,
  };
}

/** plotly reads a few HTML tags in names and labels: shown as they are instead. */
function escapeMarkup(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

/** A button that is on or off. */
function toggle(parent, { text, mark, pressed, name, onToggle }) {
  const button = element("button", { type: "button", class: "chip", "aria-pressed": String(pressed) });
  if (name !== undefined) button.dataset.run = name;
  button.append(...(mark ? [mark] : []), text);
  button.addEventListener("click", () => onToggle(button));
  parent.append(button);
  return button;
}

/** A switch, in words and drawn. */
function onOff(parent, id, text, on, onChange) {
  const button = element("button", { type: "button", id, class: "switch", role: "switch", "aria-checked": String(on) }, text);
  button.addEventListener("click", () => {
    const now = button.getAttribute("aria-checked") !== "true";
    button.setAttribute("aria-checked", String(now));
    onChange(now);
  });
  parent.append(button);
}

/** A choice among options: [value, text] pairs. */
function choice(parent, id, text, options, chosen, onChange) {
  const select = element("select", { id });
  for (const [value, shown] of options) select.append(new Option(shown, value, false, value === chosen));
  select.addEventListener("change", () => onChange(select.value));
  const label = element("label", { class: "caption", for: id }, text);
  parent.append(element("div", { class: "group" }, label, select));
  return select;
}

/** A row of buttons, several of which may be on. */
function several(parent, text, options, chosen, mark, onChange) {
  const group = element("div", { class: "group", role: "group", "aria-label": text });
  group.append(element("span", { class: "caption" }, text));
  for (const option of options) {
    toggle(group, {
      text: option,
      mark: mark?.(option),
      pressed: chosen.has(option),
      onToggle(button) {
        const on = !chosen.delete(option);
        if (on) chosen.add(option);
        button.setAttribute("aria-pressed", String(on));
        onChange();
      },
    });
  }
  parent.append(group);
}
