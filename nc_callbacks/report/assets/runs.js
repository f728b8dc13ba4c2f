"use strict";
/* A sweep's runs: which are shown, in which colours, in which order, and one value against another. */

const runButtons = [];

function showRun(run, on) {
  if (on) state.hidden.delete(run);
  else state.hidden.add(run);
  markButtons();
  refreshAll();
}

/** Buttons in the table and above the curves say which runs are shown, and how. */
function markButtons() {
  for (const { button, run } of runButtons) {
    button.setAttribute("aria-pressed", String(!state.hidden.has(run)));
    button.querySelector("svg").replaceWith(swatch(runStyle(run)));
  }
  document.getElementById("colours")?.replaceChildren(...colourMeanings());
}

function addRunButtons() {
  for (const button of document.querySelectorAll("#runs tbody .name")) {
    const run = RUNS[Number(button.dataset.run)];
    button.classList.add("chip");
    button.prepend(swatch(runStyle(run)));
    button.addEventListener("click", () => showRun(run, state.hidden.has(run)));
    runButtons.push({ button, run });
  }
  const controls = document.getElementById("curve-controls");
  if (CONTENT.parameters.length) {
    const options = [["run", "run"], ...CONTENT.parameters.map((name) => [name, name])];
    choice(controls, "colour-by", "Colour by", options, state.colourBy, (value) => {
      state.colourBy = value;
      markButtons();
      refreshAll();
    });
  }
  const chips = element("div", { class: "group chips", role: "group", "aria-label": "Runs shown" });
  for (const [on, text] of [[true, "All"], [false, "None"]]) {
    const button = element("button", { type: "button" }, text);
    button.addEventListener("click", () => {
      state.hidden = new Set(on ? [] : RUNS);
      markButtons();
      refreshAll();
    });
    chips.append(button);
  }
  for (const run of RUNS.filter((r) => r.curves.length)) {
    const button = toggle(chips, {
      text: run.label,
      mark: swatch(runStyle(run)),
      pressed: !state.hidden.has(run),
      name: String(RUNS.indexOf(run)),
      onToggle: () => showRun(run, state.hidden.has(run)),
    });
    runButtons.push({ button, run });
  }
  controls.append(chips);
  controls.append(element("ul", { class: "legend", id: "colours" }));
  markButtons();
}

/** What the colours mean, where they do not stand for runs. */
function colourMeanings() {
  if (state.colourBy === "run" && !state.seeds) return [];
  const text = (run) => (state.colourBy === "run" ? setting(run) : `${state.colourBy.split(".").at(-1)}=${run.parameters[state.colourBy]}`);
  return [...Map.groupBy(RUNS, text)].map(([meaning, [run]]) => element("li", {}, swatch(runStyle(run)), meaning));
}

/** A cell as what it sorts by: its number, or its text with numbers in it compared as numbers. */
function compareCells(a, b) {
  const [x, y] = [a, b].map((cell) => (cell.dataset.value === undefined ? NaN : Number(cell.dataset.value)));
  if (Number.isFinite(x) || Number.isFinite(y)) {
    return Number.isFinite(x) && Number.isFinite(y) ? x - y : Number.isFinite(x) ? -1 : 1;
  }
  return a.textContent.localeCompare(b.textContent, undefined, { numeric: true });
}

function addSorting() {
  const headings = [...document.querySelectorAll("#runs thead th")];
  const body = document.querySelector("#runs tbody");
  headings.forEach((heading, column) => {
    heading.firstElementChild.addEventListener("click", () => {
      const up = heading.getAttribute("aria-sort") !== "ascending";
      headings.forEach((other) => other.setAttribute("aria-sort", "none"));
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...body.rows].sort((a, b) => compareCells(a.cells[column], b.cells[column]));
      body.append(...(up ? rows : rows.reverse()));
    });
  });
}

/** A run's number of that name: a final value, or a parameter (a number where it is one). */
function coordinate(run, name) {
  if (name in run.final) return run.final[name];
  const text = run.parameters[name] ?? "";
  return text !== "" && Number.isFinite(Number(text)) ? Number(text) : escapeMarkup(text);
}

function addAxes() {
  const finals = distinct(RUNS.flatMap((run) => Object.keys(run.final)).map((name) => ({ name })), "name").sort();
  const names = [...CONTENT.parameters, ...finals];
  if (!finals.length) return;
  const among = (...wanted) => wanted.find((name) => names.includes(name)) ?? names[0];
  state.x = among("nc/train/wm_cosine", finals[0]);
  state.y = among("nc/val/accuracy", finals.at(-1));
  [usual.x, usual.y] = [state.x, state.y];
  for (const side of ["x", "y"]) state[side] = askedAmong(side, names, state[side]);
  const controls = document.getElementById("axes-controls");
  const chart = new Chart(document.getElementById("axes"), "Runs against each other, final values", () => {
    const runs = shownRuns().filter((run) => Object.keys(run.final).length);
    const at = runs.map((run) => [coordinate(run, state.x), coordinate(run, state.y)]);
    return {
      traces: runs.map((run, i) => ({
        x: [at[i][0]],
        y: [at[i][1]],
        name: escapeMarkup(run.label),
        meta: run.label,
        mode: "markers",
        marker: { size: 12, color: style(runStyle(run)).color, symbol: style(runStyle(run)).symbol, opacity: 0.9 },
      })),
      layout: {
        height: 380,
        hovermode: "closest",
        xaxis: axis(escapeMarkup(state.x)),
        yaxis: axis(escapeMarkup(state.y)),
      },
      summary: `${state.y} against ${state.x} of ${runs.length} runs.`,
    };
  });
  for (const side of ["x", "y"]) {
    const text = side === "x" ? "Horizontal" : "Vertical";
    choice(controls, `axis-${side}`, text, names.map((name) => [name, name]), state[side], (value) => {
      state[side] = value;
      chart.refresh();
      remember();
    });
  }
}
