// Usage against prediction over the last hour, with what happened to requests below it.

import { byId, element, keep, mark, say, shape } from "./dom.js";
import { clock, clockExact, count, duration, isKnown, percent, UNKNOWN } from "./format.js";

const LEFT = 76, RIGHT = 10, TOP = 10, LANE = 20, PAD = 8, AXIS = 20;
const LANES = ["waiting", "preempted"];
const SPANS_SECONDS = [120, 300, 900, 1800, 3600];

const parts = {};
let view = { points: [], now: 0, gap: 13, span: 3600, width: 0, height: 0 };
let cursor; // seconds before now, or undefined for the latest

export function setUpChart() {
  const svg = byId("chart-svg");
  const add = (name, tag = "path", attributes = {}) =>
    svg.append((parts[name] = shape(tag, { class: name, ...attributes })));
  for (const name of ["grid", "lanes", "band", "area", "predicted", "used"]) add(name);
  for (const name of ["waiting", "preempted", "restarts"]) add(name);
  add("labels", "g");
  add("cursor", "line");
  new ResizeObserver(() => redraw()).observe(svg);
  const scrub = byId("scrub");
  scrub.addEventListener("input", () => moveTo(view.span - scrub.valueAsNumber));
  scrub.addEventListener("pointermove", (event) => {
    const share = (event.offsetX - LEFT) / (scrub.clientWidth - LEFT - RIGHT);
    moveTo(view.span * (1 - Math.min(1, Math.max(0, share))));
  });
  scrub.addEventListener("pointerleave", () => moveTo(undefined));
  scrub.addEventListener("blur", () => moveTo(undefined));
  byId("chart-head").append(...HEAD.map((title) => element("th", { scope: "col" }, title)));
  byId("chart-table").addEventListener("toggle", () => table());
}

/** Draw these points; `now` is the right edge, `gap` what is not joined. */
export function showChart(points, now, gap) {
  const age = now - (points[0]?.at ?? now);
  const span = SPANS_SECONDS.find((seconds) => seconds >= age - gap) ?? 3600;
  view = { ...view, points: points.filter((point) => point.at >= now - span), now, gap, span };
  say(byId("span"), span === 3600 ? "last hour" : `last ${duration(span)}`);
  mark(byId("scrub"), "max", span);
  if (cursor === undefined) byId("scrub").valueAsNumber = span;
  redraw();
}

function redraw() {
  const box = byId("chart-svg").getBoundingClientRect();
  if (!box.width) return;
  view.width = box.width;
  view.height = box.height;
  lines();
  grid();
  happenings();
  readOut();
  table();
}

const plotBottom = () => view.height - AXIS - LANES.length * LANE - PAD;
const x = (at) => LEFT + (view.width - LEFT - RIGHT) * (1 - (view.now - at) / view.span);
const y = (share) => plotBottom() - (plotBottom() - TOP) * Math.min(1, Math.max(0, share));
const place = (at, share) => `${x(at).toFixed(1)} ${y(share).toFixed(1)}`;

/** Runs of points that have a value and follow one another: a gap stays a gap. */
function runs(...names) {
  const found = [];
  let run = [];
  let last = -Infinity;
  for (const point of view.points) {
    const isThere = names.every((name) => isKnown(point[name]));
    if (run.length && (!isThere || point.at - last > view.gap)) { found.push(run); run = []; }
    if (isThere) { run.push(point); last = point.at; }
  }
  if (run.length) found.push(run);
  return found;
}

const line = (name) => runs(name).map((run) =>
  `M${run.map((point) => place(point.at, point[name])).join("L")}` +
  (run.length === 1 ? "h.01" : "")).join("");

const area = (low, high) => runs(...(low ? [low, high] : [high])).map((run) => {
  const top = run.map((point) => place(point.at, point[high]));
  const bottom = run.map((point) => place(point.at, low ? point[low] : 0)).reverse();
  return `M${top.join("L")}L${bottom.join("L")}Z`;
}).join("");

function lines() {
  mark(parts.band, "d", area("low", "high"));
  mark(parts.area, "d", area(undefined, "used"));
  mark(parts.used, "d", line("used"));
  mark(parts.predicted, "d", line("predicted"));
}

/** The lane's top edge. */
const lane = (i) => plotBottom() + PAD + i * LANE;

function happenings() {
  const most = Math.max(1, ...view.points.map((point) => point.waiting ?? 0));
  const width = Math.max(1.2, ((view.width - LEFT - RIGHT) * view.gap) / 2.6 / view.span);
  mark(parts.waiting, "d", view.points.filter((point) => point.waiting > 0).map((point) => {
    const height = 2 + (LANE - 6) * (point.waiting / most);
    return `M${(x(point.at) - width).toFixed(1)} ${lane(1)}v${-height.toFixed(1)}h${width.toFixed(1)}V${lane(1)}z`;
  }).join(""));
  mark(parts.preempted, "d", view.points.filter((point) => point.preemptions > 0)
    .map((point) => `M${x(point.at).toFixed(1)} ${lane(1) + 4}l-4 12h8z`).join(""));
  mark(parts.restarts, "d", view.points.filter((point) => point.restarts > 0)
    .map((point) => `M${x(point.at).toFixed(1)} ${TOP}V${lane(2)}`).join(""));
}

function grid() {
  const right = view.width - RIGHT;
  const levels = [0, 0.25, 0.5, 0.75, 1];
  mark(parts.grid, "d", levels.map((share) => `M${LEFT} ${y(share).toFixed(1)}H${right}`).join(""));
  mark(parts.lanes, "d", [1, 2].map((i) => `M${LEFT} ${lane(i)}H${right}`).join(""));
  const times = ticks();
  const labels = [
    ...levels.map((share) => ({ text: `${share * 100} %`, x: LEFT - 6, y: y(share) + 4, anchor: "end" })),
    ...LANES.map((text, i) => ({ text, x: LEFT - 6, y: lane(i) + 14, anchor: "end" })),
    ...times.map((at) => ({ text: clock(at), x: x(at), y: view.height - 5, anchor: "middle" })),
    ...view.points.filter((point) => point.restarts > 0).slice(-3)
      .map((point) => ({ text: "restart", x: x(point.at) - 4, y: TOP + 10, anchor: "end", kind: "restart" })),
  ];
  keep(parts.labels, labels.map((label, i) => ({ ...label, i })), (label) => label.i,
    () => ({ node: shape("text") }), ({ node }, label) => {
      mark(node, "x", label.x.toFixed(1));
      mark(node, "y", label.y.toFixed(1));
      mark(node, "text-anchor", label.anchor);
      mark(node, "class", label.kind);
      say(node, label.text);
    });
}

/** Round times of day, as many as there is room for. */
function ticks() {
  const step = Math.max(60, (view.span / 3600) * (view.width < 520 ? 1200 : 600));
  const zone = new Date(view.now * 1000).getTimezoneOffset() * 60;
  const first = Math.ceil((view.now - view.span - zone) / step) * step + zone;
  const all = Array.from({ length: Math.ceil(view.span / step) + 1 }, (_, i) => first + i * step);
  return all.filter((at) => at <= view.now && x(at) > LEFT + 14 && x(at) < view.width - RIGHT - 14);
}

function moveTo(ago) {
  cursor = ago;
  readOut();
}

/** What is written over the chart: the point under the cursor, else the latest. */
function readOut() {
  const isMoved = cursor !== undefined;
  const at = view.now - (cursor ?? 0);
  const point = nearest(at);
  mark(parts.cursor, "visibility", isMoved && point ? undefined : "hidden");
  byId("readout").toggleAttribute("data-moved", isMoved);
  const words = point ? pointInWords(point, isMoved) : isMoved ? `${clockExact(at)} · nothing is known` : "";
  say(byId("readout"), words);
  mark(byId("scrub"), "aria-valuetext", words || "nothing is known yet");
  say(byId("chart-desc"), summary());
  if (!isMoved || !point) return;
  for (const end of ["x1", "x2"]) mark(parts.cursor, end, x(point.at).toFixed(1));
  mark(parts.cursor, "y1", TOP);
  mark(parts.cursor, "y2", lane(2));
  byId("scrub").valueAsNumber = view.span - cursor;
}

function nearest(at) {
  let best;
  for (const point of view.points) {
    if (!best || Math.abs(point.at - at) < Math.abs(best.at - at)) best = point;
  }
  return best && Math.abs(best.at - at) <= Math.max(view.gap, 20) ? best : undefined;
}

function pointInWords(point, isMoved) {
  const interval = isKnown(point.low) ? ` (${percent(point.low)}–${percent(point.high)})` : "";
  return [
    isMoved && `${clockExact(point.at)}, ${duration(view.now - point.at)} ago`,
    `used ${percent(point.used)}`,
    `predicted ${percent(point.predicted)}${interval}`,
    isKnown(point.running) && `${count(point.running)} running`,
    isKnown(point.waiting) && `${count(point.waiting)} waiting`,
    point.preemptions > 0 && `${count(point.preemptions)} preempted`,
    point.restarts > 0 && "engine restarted",
  ].filter(Boolean).join(" · ");
}

function summary() {
  const known = view.points.filter((point) => isKnown(point.used));
  if (!known.length) return "Nothing is known yet.";
  const used = known.map((point) => Math.max(point.used, point.peak ?? 0));
  const sum = (name) => view.points.reduce((total, point) => total + (point[name] ?? 0), 0);
  return `From ${clock(known[0].at)} to ${clock(known.at(-1).at)}: between ` +
    `${percent(Math.min(...known.map((point) => point.used)))} and ${percent(Math.max(...used))} used, ` +
    `${count(sum("preemptions"))} preemptions, ${count(sum("restarts"))} restarts.`;
}

const HEAD = ["Time", "Used", "Predicted", "Running", "Waiting", "Preempted since"];

/** The same in numbers, every five minutes; only while somebody reads it. */
function table() {
  if (!byId("chart-table").open) return;
  const rows = Array.from({ length: 13 }, (_, i) => view.now - i * 300).map((at) => {
    const point = nearest(at) ?? {};
    const preempted = view.points.filter((one) => one.at > at - 300 && one.at <= at && isKnown(one.preemptions));
    return [clock(at), percent(point.used), percent(point.predicted), count(point.running),
      count(point.waiting),
      preempted.length ? count(preempted.reduce((sum, one) => sum + one.preemptions, 0)) : UNKNOWN];
  });
  const createRow = () => {
    const cells = HEAD.map((_, i) => element(i ? "td" : "th", i ? {} : { scope: "row" }));
    return { node: element("tr", {}, ...cells), cells };
  };
  keep(byId("chart-rows"), rows.map((cells, i) => ({ cells, i })), (row) => row.i, createRow,
    (view_, row) => row.cells.forEach((text, i) => say(view_.cells[i], text)));
}
