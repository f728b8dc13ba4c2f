"use strict";
/* What is shown, in the address: a link shows the same. Only what differs from the page as it opens is written there. */

/** The place in the page and the choices that an address names: `#curves-NC1?log=0&splits=train`. */
function fromAddress() {
  const [place, text] = location.hash.slice(1).split("?");
  return { place: decodeURIComponent(place), choices: new URLSearchParams(text ?? "") };
}

/** What can be chosen, as text by name. */
function choices() {
  const list = (set, of) => [...set].map((thing) => of.indexOf(thing)).sort((a, b) => a - b).join(".");
  return {
    log: state.log ? "1" : "0",
    logEpochs: state.logEpochs ? "1" : "0",
    seeds: state.seeds ? "1" : "0",
    splits: list(state.splits, SPLITS),
    layers: list(state.places, PLACES),
    hidden: list(state.hidden, RUNS),
    colour: state.colourBy,
    x: state.x,
    y: state.y,
    run: String(RUNS.indexOf(shown.run)),
    split: shown.split,
    layer: shown.place,
    epoch: String(shown.epoch),
  };
}

let usual = {};
let asked = fromAddress().choices;
let writing = null;

/** Take over what the address asks for, as far as the page has it; before anything is drawn. */
function restore() {
  const listed = (name, of) => asked.get(name)?.split(".").filter(Boolean).map((i) => of[Number(i)]).filter((thing) => thing !== undefined);
  for (const name of ["log", "logEpochs", "seeds"]) if (asked.has(name)) state[name] = asked.get(name) === "1";
  for (const [name, field, of] of [["splits", "splits", SPLITS], ["layers", "places", PLACES], ["hidden", "hidden", RUNS]]) {
    const found = listed(name, of);
    // None of those that are there is no choice; none at all is one.
    if (found && (found.length || !asked.get(name))) state[field] = new Set(found);
  }
  if (["run", ...CONTENT.parameters].includes(asked.get("colour"))) state.colourBy = asked.get("colour");
}

/** One of some options that the address asks for, or else another. */
function askedAmong(name, options, otherwise) {
  return options.includes(asked.get(name)) ? asked.get(name) : otherwise;
}

/** Write the choices into the address, soon. */
function remember() {
  clearTimeout(writing);
  writing = setTimeout(() => {
    const query = new URLSearchParams();
    for (const [name, value] of Object.entries(choices())) if (value !== usual[name]) query.set(name, value ?? "");
    const text = query.size ? `?${query}` : "";
    const { place } = fromAddress();
    asked = query;
    history.replaceState(null, "", place || text ? `#${encodeURIComponent(place)}${text}` : location.pathname + location.search);
  }, 100);
}

/** A link within the page keeps the choices; another page's address brings its own. */
addEventListener("hashchange", () => {
  const found = fromAddress();
  if (found.choices.size && String(found.choices) !== String(asked)) location.reload();
  else remember();
});

/** The browser finds no place whose name is followed by choices. */
function goToPlace() {
  const { place, choices: found } = fromAddress();
  if (place && found.size) document.getElementById(place)?.scrollIntoView();
}
