"use strict";
/* What can be done with every chart: read it, zoom, and take it along as a picture or a table. */

/** What lies under the pointer, for the line below the chart. */
function readout(points, layout) {
  const [first] = points;
  if (first.data.type === "heatmap") return `${first.customdata.join(", ")}: ${short(first.z)}`;
  const item = ({ data, y }) => [data.meta, short(y)].filter(Boolean).join(": ");
  const unit = titleOf(layout.yaxis);
  const measured = unit && unit !== "dimensionless" ? ` (${unit})` : "";
  return `${titleOf(layout.xaxis)} ${typeof first.x === "number" ? plain(first.x) : first.x} · ${points.map(item).join(" · ")}${measured}`;
}

function titleOf(axisOf) {
  return axisOf.title?.text ?? "";
}

/** A whole number as it is, another with three digits. */
function plain(value) {
  return Number.isInteger(value) ? String(value).replace("-", "−") : short(value);
}

/** What a chart shows as rows of cells, under a heading. */
function tableOf(traces, layout) {
  const named = traces.filter((trace) => trace.meta !== undefined || trace.type === "heatmap" || traces.length === 1);
  if (named[0]?.type === "heatmap") {
    const [{ z, customdata }] = named;
    return [["row", "column", "value"], ...z.flatMap((row, i) => row.map((value, j) => [...customdata[i][j], value ?? ""]))];
  }
  const rows = named.flatMap(({ meta, x, y }) => x.map((at, i) => [meta ?? "", at, y[i] ?? ""]));
  return [["series", titleOf(layout.xaxis) || "x", titleOf(layout.yaxis) || "value"], ...rows];
}

/** Text of a CSV file; a text that a spreadsheet would take for a formula gets an apostrophe. */
function csv(rows) {
  const harmless = (cell) => (typeof cell === "string" && /^\s*[=+\-@]/.test(cell) && Number.isNaN(Number(cell)) ? `'${cell}` : String(cell));
  const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  return rows.map((row) => row.map((cell) => quoted(harmless(cell))).join(",")).join("\r\n") + "\r\n";
}

function download(name, blob) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** A file's name from a chart's title. */
function fileName(chart, ending) {
  const text = chart.heading.textContent.normalize("NFKD").replace(/[^\p{L}\p{N}]+/gu, "_");
  return `${text.replace(/^_|_$/g, "") || "chart"}.${ending}`;
}

function downloadTable(chart) {
  const { traces, layout } = chart.content();
  download(fileName(chart, "csv"), new Blob(["\ufeff", csv(tableOf(traces, layout))], { type: "text/csv" }));
}

/** The chart with its title and its legend as a picture, twice as fine as on the screen. */
async function downloadPicture(chart) {
  const { layout, data, clientWidth } = chart.plot;
  const height = layout.height + 90;
  const picture = {
    data: data.map((trace) => ({ ...trace, showlegend: trace.meta !== undefined && data.length > 1 })),
    layout: {
      ...layout,
      title: { text: escapeMarkup(chart.heading.textContent), font: { size: 14 }, x: 0.02 },
      margin: { ...layout.margin, t: 50 },
      showlegend: data.length > 1,
      legend: { orientation: "h", y: -0.2 },
      paper_bgcolor: theme("card"),
      height,
      width: Math.max(clientWidth, 480),
    },
  };
  const url = await Plotly.toImage(picture, { format: "png", width: picture.layout.width, height, scale: 2 });
  download(fileName(chart, "png"), new Blob([decoded(url.split(",")[1], Uint8Array)], { type: "image/png" }));
}

/** Buttons of a chart; «Zoom» where a finger would else scroll the page, «Reset» where something is enlarged. */
function addTools(chart) {
  const add = (kind, text, label, onClick) => {
    const button = element("button", { type: "button", class: kind, "aria-label": `${label}: ${chart.heading.textContent}` }, text);
    button.addEventListener("click", () => onClick(button));
    chart.tools.append(button);
  };
  add("zoom", "Zoom", "Zoom by touch", (button) => {
    chart.zooms = !chart.zooms;
    button.setAttribute("aria-pressed", String(chart.zooms));
    chart.redraw();
  });
  add("reset", "Reset", "Show all", () => {
    chart.views += 1;
    chart.figure.classList.remove("zoomed");
    chart.redraw();
  });
  add("png", "PNG", "Save as a picture", () => downloadPicture(chart));
  add("csv", "CSV", "Save as a table", () => downloadTable(chart));
}

/** Follow the pointer: the values beside the curves, and whether a part is enlarged. */
function listen(chart) {
  chart.plot.on("plotly_hover", ({ points }) => {
    chart.note.textContent = readout(points, chart.plot.layout);
    chart.note.classList.add("reading");
  });
  chart.plot.on("plotly_unhover", () => {
    chart.note.textContent = chart.said;
    chart.note.classList.remove("reading");
  });
  chart.plot.on("plotly_relayout", (changed) => {
    const names = Object.keys(changed);
    if (names.some((name) => name.includes(".range"))) chart.figure.classList.add("zoomed");
    if (names.some((name) => name.includes(".autorange"))) chart.figure.classList.remove("zoomed");
  });
}
