"use strict";
/* Build the page; the charts draw themselves as they come into view, once plotly is there. */

/** plotly takes longer than all the rest: it starts when text and controls have been painted. */
function startPlotly() {
  if (window.Plotly) return;
  const script = element("script");
  script.textContent = document.getElementById("plotly").textContent;
  document.body.append(script);
  refreshAll();
}

usual = choices();
restore();
addCurves();
addDepth();
if (CONTENT.sweep) {
  addRunButtons();
  addSorting();
  addAxes();
}
addLooks();
goToPlace();
afterPaint(startPlotly);
addEventListener("beforeprint", () => {
  startPlotly();
  beginPrinting();
});
addEventListener("afterprint", endPrinting);
