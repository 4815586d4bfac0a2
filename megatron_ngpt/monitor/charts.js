// The curves of a report: SVG, drawn from the JSON in #data. Everything is in this page; nothing is fetched.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const HEIGHT = 230, LEFT = 62, RIGHT = 14, TOP = 14, BOTTOM = 30;
const state = { axis: "step", smooth: 0, zoom: null, hidden: new Set(), log: new Set(), at: null };
const axisName = { step: "step", tokens: "tokens", hours: "hours of training" };
const charts = [...document.querySelectorAll(".chart")].map((box) => ({ box, ...data.charts[+box.dataset.chart] }));

const svg = (name, attributes, parent, text) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return parent.appendChild(made);
};

// The place of the last entry that is at most `value`.
function floorOf(sorted, value) {
  let low = 0, high = sorted.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (sorted[middle] <= value) low = middle; else high = middle - 1;
  }
  return low;
}

// A step on the axis that is shown, between known places in proportion.
function placed(run, step) {
  if (state.axis === "step") return step;
  const known = data.places[run], values = known[state.axis], i = floorOf(known.step, step);
  if (i + 1 >= values.length || known.step[i] >= step) return values[i];
  return values[i] + (values[i + 1] - values[i]) * (step - known.step[i]) / (known.step[i + 1] - known.step[i]);
}

function smoothed(values) {
  if (!state.smooth) return values;
  let sum = 0, weight = 0;
  return values.map((value) => {
    sum = state.smooth * sum + (1 - state.smooth) * value;
    weight = state.smooth * weight + 1 - state.smooth;
    return sum / weight;
  });
}

function shown(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  for (const [unit, letter] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]])
    if (size >= unit) return String(+(value / (letter === "k" ? 1e3 : unit)).toPrecision(4)) + letter;
  return size < 1e-3 ? value.toExponential(2).replace("e-", "e\u2212").replace(".00e", "e") : String(+value.toPrecision(5));
}

function ticks(low, high, count, log) {
  const found = [];
  if (log) {
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
      for (const step of [1, 2, 5]) found.push(step * 10 ** power);
    const inside = found.filter((tick) => tick >= low && tick <= high);
    if (inside.length >= 2) return inside.length > 2 * count ? inside.filter((tick) => Number.isInteger(Math.log10(tick))) : inside;
    found.length = 0;
  }
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((part) => part * power).find((size) => size >= raw);
  for (let tick = Math.ceil(low / step) * step; tick <= high + step * 1e-9; tick += step) found.push(Math.abs(tick) < step * 1e-9 ? 0 : tick);
  return found;
}

// What a chart has to show: each series' points on the axis, within the zoom.
function view(chart) {
  const lines = chart.series.filter((one) => !state.hidden.has(one.name)).map((one) => {
    const x = one.steps.map((step) => placed(one.run, step));
    return { ...one, x, soft: one.dots ? one.values : smoothed(one.values) };
  });
  const inside = (x) => !state.zoom || (x >= state.zoom[0] && x <= state.zoom[1]);
  let xs = [], ys = [];
  for (const line of lines) line.x.forEach((x, i) => { if (inside(x)) { xs.push(x); ys.push(line.values[i]); } });
  const log = state.log.has(chart.title) && ys.every((y) => y > 0);
  let low = ys.reduce((a, b) => Math.min(a, b), Infinity), high = ys.reduce((a, b) => Math.max(a, b), -Infinity);
  if (!ys.length) { low = 0; high = 1; }
  const reach = high - low || Math.abs(high) || 1;
  for (const bound of [chart.low, chart.high]) // a bound that is near enough is shown
    if (bound !== null && bound > low - 6 * reach && bound < high + 6 * reach && (!log || bound > 0)) {
      low = Math.min(low, bound); high = Math.max(high, bound);
    }
  if (log) { low /= 1.05; high *= 1.05; } else {
    const pad = (high - low || Math.abs(high) || 1) * 0.06;
    low = low >= 0 && low - pad < 0 ? 0 : low - pad;
    high += pad;
  }
  const all = charts.flatMap((other) => other.series.flatMap((one) =>
    one.steps.length ? [placed(one.run, one.steps[0]), placed(one.run, one.steps[one.steps.length - 1])] : []));
  let from = state.zoom ? state.zoom[0] : Math.min(0, ...all), to = state.zoom ? state.zoom[1] : Math.max(...all);
  if (to <= from) to = from + 1;
  return { lines, low, high, from, to, log };
}

function draw(chart) {
  const { box } = chart, seen = view(chart), { low, high, from, to, log } = seen;
  const width = Math.max(280, box.clientWidth), right = width - RIGHT, bottom = HEIGHT - BOTTOM;
  const scaled = (value) => (log ? Math.log(value) : value);
  const X = (x) => LEFT + (x - from) / (to - from) * (right - LEFT);
  const Y = (y) => bottom - (scaled(y) - scaled(low)) / (scaled(high) - scaled(low)) * (bottom - TOP);
  box.querySelector("svg")?.remove();
  const root = svg("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": chart.title }, box);
  const clip = `clip-${charts.indexOf(chart)}`;
  svg("rect", { x: LEFT, y: TOP, width: right - LEFT, height: bottom - TOP }, svg("clipPath", { id: clip }, root));
  for (const tick of ticks(low, high, 5, log)) {
    svg("line", { x1: LEFT, x2: right, y1: Y(tick), y2: Y(tick), class: "grid" }, root);
    svg("text", { x: LEFT - 8, y: Y(tick) + 4, class: "tick", "text-anchor": "end" }, root, shown(tick));
  }
  for (const tick of ticks(from, to, Math.max(3, Math.round(width / 130)), false))
    svg("text", { x: X(tick), y: bottom + 18, class: "tick", "text-anchor": "middle" }, root, shown(tick));
  const plot = svg("g", { "clip-path": `url(#${clip})` }, root);
  if (chart.low !== null && chart.low > low)
    svg("rect", { x: LEFT, width: right - LEFT, y: Y(chart.low), height: bottom - Y(chart.low), class: "unhealthy" }, plot);
  if (chart.high !== null && chart.high < high)
    svg("rect", { x: LEFT, width: right - LEFT, y: TOP, height: Math.max(0, Y(chart.high) - TOP), class: "unhealthy" }, plot);
  for (const event of data.events) {
    const x = X(placed(event.run, event.step));
    svg("title", {}, svg("line", { x1: x, x2: x, y1: TOP, y2: bottom, class: `event ${event.kind}`, style: `stroke:${event.color}` }, plot), event.text);
  }
  for (const line of seen.lines) {
    const path = (values) => values.map((y, i) => `${i ? "L" : "M"}${X(line.x[i]).toFixed(1)},${Y(y).toFixed(1)}`).join("");
    if (line.soft !== line.values) svg("path", { d: path(line.values), class: "raw", style: `stroke:${line.color}` }, plot);
    svg("path", { d: path(line.soft), class: "line", style: `stroke:${line.color}` }, plot);
    if (line.dots || line.x.length < 3)
      line.x.forEach((x, i) => svg("circle", { cx: X(x), cy: Y(line.soft[i]), r: 3, style: `fill:${line.color}` }, plot));
  }
  svg("line", { x1: LEFT, x2: right, y1: bottom, y2: bottom, class: "axis" }, root);
  const cross = svg("line", { y1: TOP, y2: bottom, class: "cross", visibility: "hidden" }, root);
  const drag = svg("rect", { y: TOP, height: bottom - TOP, class: "drag", visibility: "hidden" }, root);
  const back = (event) => {
    const x = event.clientX - root.getBoundingClientRect().left;
    return from + (Math.min(Math.max(x, LEFT), right) - LEFT) / (right - LEFT) * (to - from);
  };
  let began = null;
  root.onpointerdown = (event) => { began = back(event); root.setPointerCapture(event.pointerId); };
  root.onpointermove = (event) => {
    point(back(event));
    if (began === null) return;
    const [a, b] = [X(began), X(back(event))].sort((p, q) => p - q);
    drag.setAttribute("visibility", "visible"); drag.setAttribute("x", a); drag.setAttribute("width", b - a);
  };
  root.onpointerup = (event) => {
    const end = back(event), wide = began !== null && Math.abs(X(end) - X(began)) > 8;
    if (wide) state.zoom = [Math.min(began, end), Math.max(began, end)];
    began = null;
    if (wide) render();
  };
  root.ondblclick = () => { state.zoom = null; render(); };
  root.onpointerleave = () => point(null);
  chart.point = (at) => {
    cross.setAttribute("visibility", at === null ? "hidden" : "visible");
    if (at !== null) { cross.setAttribute("x1", X(at)); cross.setAttribute("x2", X(at)); }
    for (const line of seen.lines) {
      const place = box.querySelector(`[data-name="${CSS.escape(line.name)}"] b`);
      if (!place || !line.x.length) continue;
      let i = line.x.length - 1;
      if (at !== null) {
        i = floorOf(line.x, at);
        if (i + 1 < line.x.length && line.x[i + 1] - at < at - line.x[i]) i++;
      }
      place.textContent = shown(line.soft[i]);
    }
    box.querySelector(".where").textContent = at === null ? "newest" : `${axisName[state.axis]} ${shown(state.axis === "step" ? Math.round(at) : at)}`;
  };
  chart.point(state.at);
}

function point(at) {
  state.at = at;
  for (const chart of charts) chart.point?.(at);
}

function render() {
  for (const chart of charts) draw(chart);
  document.getElementById("reset").hidden = !state.zoom;
}

for (const input of document.querySelectorAll("[name=axis]"))
  input.onchange = () => { state.axis = input.value; state.zoom = null; render(); };
document.getElementById("smooth").oninput = (event) => { state.smooth = +event.target.value; render(); };
document.getElementById("reset").onclick = () => { state.zoom = null; render(); };
for (const button of document.querySelectorAll(".chart .log")) button.onclick = () => {
  const title = data.charts[+button.closest(".chart").dataset.chart].title;
  if (!state.log.delete(title)) state.log.add(title);
  button.setAttribute("aria-pressed", state.log.has(title));
  render();
};
for (const name of document.querySelectorAll(".chart [data-name]")) name.onclick = () => {
  const own = name.dataset.name;
  if (!state.hidden.delete(own)) state.hidden.add(own);
  for (const other of document.querySelectorAll(".chart [data-name]")) other.classList.toggle("off", state.hidden.has(other.dataset.name));
  render();
};
addEventListener("resize", render);
render();
document.body.dataset.drawn = document.querySelectorAll(".chart svg path.line").length;
