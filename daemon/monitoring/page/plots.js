// Small plots as inline SVG: lines over the last hour, and a span on a logarithmic scale.

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 180, LEFT = 40, RIGHT = 8, TOP = 8, BOTTOM = 22;
const STYLES = ["one", "two", "three", "four"];

function element(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// The smallest of 1, 2, 5, 10, 20, ... that holds the value.
function roof(value) {
  for (let power = 1; ; power *= 10)
    for (const step of [1, 2, 5]) if (step * power >= value) return step * power;
}

const short = (value) => String(value >= 10 ? Math.round(value) : Math.round(value * 10) / 10);

// Lines of `series` (name to values) over the times `at`; the right edge is `now`, the left one `span` seconds before.
export function lines(figure, title, series, at, now, span) {
  const names = Object.keys(series);
  const width = figure.clientWidth || 600; // one unit is one pixel: text keeps its size on a narrow screen
  const top = roof(Math.max(1, ...names.flatMap((name) => series[name])));
  const x = (time) => LEFT + (width - LEFT - RIGHT) * Math.min(1, Math.max(0, 1 - (now - time) / span));
  const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / top);
  const last = names.map((name) => `${name} ${short(series[name].at(-1) ?? 0)}`).join(", ");
  const plot = element("svg", {
    viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": `${title}; now: ${last}`,
  });
  for (const value of [0, top / 2, top]) {
    plot.append(element("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }));
    plot.append(element("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, String(value)));
  }
  for (const share of [1, 0.5, 0])
    plot.append(element("text", {
      x: x(now - share * span), y: HEIGHT - 6, "text-anchor": share === 1 ? "start" : share ? "middle" : "end",
    }, share ? `-${Math.round(share * span / 60)} min` : "now"));
  names.forEach((name, index) => {
    const points = at.map((time, place) => `${x(time).toFixed(1)},${y(series[name][place]).toFixed(1)}`);
    if (points.length) plot.append(element("path", { class: STYLES[index], d: `M${points.join("L")}` }));
  });
  const legend = document.createElement("ul");
  legend.className = "legend";
  names.forEach((name, index) => {
    const item = document.createElement("li");
    const sample = element("svg", { viewBox: "0 0 26 8", "aria-hidden": "true" });
    sample.append(element("path", { class: STYLES[index], d: "M0,4L26,4" }));
    item.append(sample, `${name} `, Object.assign(document.createElement("b"), { textContent: short(series[name].at(-1) ?? 0) }));
    legend.append(item);
  });
  figure.replaceChildren(plot, legend);
}

// From p50 to p95 on a logarithmic scale from 5 ms to 10 min.
export function spanBar(low, high) {
  const place = (seconds) => 140 * Math.min(1, Math.max(0, Math.log(seconds / 0.005) / Math.log(600 / 0.005)));
  const bar = element("svg", { viewBox: "0 0 140 14", "aria-hidden": "true" });
  bar.append(element("rect", { class: "track", x: 0, y: 6, width: 140, height: 2 }));
  const left = Math.min(place(low), 136);
  bar.append(element("rect", { class: "span", x: left, y: 2, width: Math.max(4, place(high) - left), height: 10 }));
  return bar;
}
