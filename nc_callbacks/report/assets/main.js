"use strict";
/* Build the page; the charts draw themselves as they come into view. */

addCurves();
if (CONTENT.sweep) {
  addRunButtons();
  addSorting();
  addAxes();
}
addLooks();
