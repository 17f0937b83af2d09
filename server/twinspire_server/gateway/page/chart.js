// Small line charts, drawn by hand in SVG.

import { h, svg } from "./dom.js";

const WIDTH = 300;
const HEIGHT = 92;

/** Return the next round number at or above `value`: 1, 2 or 5 times a power of ten. */
export function roundUp(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value * 0.999);
}

/**
 * Return a chart of lines over time. `series` are lists of numbers, null where nothing is known; `top` is the largest
 * value shown, at least, and `bottom` the smallest.
 */
export function lineChart({ series, slots, label, top = 0, bottom = 0, format }) {
  const known = series.flat().filter((value) => value !== null && value !== undefined);
  const high = top || roundUp(Math.max(0, ...known));
  const x = (place, count) => WIDTH * (1 - (count - 1 - place) / (slots - 1));
  const y = (value) => HEIGHT - (HEIGHT - 4) * Math.min(1, Math.max(0, (value - bottom) / (high - bottom || 1)));
  const drawn = series.flatMap((values, number) =>
    runs(values).flatMap((run) => {
      const points = run.map(([place, value]) => `${x(place, values.length).toFixed(1)},${y(value).toFixed(1)}`);
      if (points.length === 1) points.push(points[0]);
      const [first, last] = [points[0].split(",")[0], points.at(-1).split(",")[0]];
      return [
        number === 0 && svg("path", { class: `area s${number}`, d: `M${first},${HEIGHT}L${points.join("L")}L${last},${HEIGHT}Z` }),
        svg("path", { class: `line s${number}`, d: `M${points.join("L")}` }),
      ];
    }),
  );
  const rules = [4, HEIGHT / 2 + 2, HEIGHT].map((at) => svg("path", { class: "rule", d: `M0,${at}H${WIDTH}` }));
  return h(
    "div",
    { className: "plot-box" },
    svg("svg", { class: "plot", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label }, rules, drawn),
    h("div", { className: "axis", "aria-hidden": "true" }, h("span", {}, format(high)), h("span", {}, format(bottom))),
  );
}

function runs(values) {
  const found = [];
  let open = false;
  for (const [place, value] of values.entries()) {
    if (value === null || value === undefined) open = false;
    else if (open) found.at(-1).push([place, value]);
    else {
      found.push([[place, value]]);
      open = true;
    }
  }
  return found;
}
