// Tables: engines with the hottest first, the health of each source, the arguments of vLLM.

import { byId, element, icon, keep, mark, say, setIcon } from "./dom.js";
import { bytes, count, duration, fullIn, isKnown, limit, percent, reading, signed, UNKNOWN, word } from "./format.js";
import { ageOf, byHeat } from "./fleet.js";
import { metricButton, showMetric } from "./metric.js";
import { sourceWords } from "./verdict.js";

const waiting = (values) => {
  const reasons = Object.values(values.waiting_requests ?? {});
  return reasons.length ? reasons.reduce((sum, n) => sum + n, 0) : undefined;
};
const value = (name, at) => ({ engine }) => reading(engine.values, name, at);
const shown = (name, at, show) => ({ name, at, show, of: value(name, at) });

const COLUMNS = [
  { title: "Engine", of: ({ engine, target }) => `${engine.model_name ?? ""} ${target.target}`, isText: true },
  { title: "State", of: undefined },
  { title: "Used", ...shown("kv_cache_usage_ratio", undefined, percent) },
  { title: "Blocks off", ...shown("prediction_error_blocks", "kv_cache_used_blocks", signed(count)) },
  { title: "Room", ...shown("headroom_requests", "observed_mean", count) },
  { title: "Running", ...shown("running_requests", undefined, count) },
  { title: "Waiting", name: "waiting_requests", show: count, of: ({ engine }) => waiting(engine.values) },
  { title: "Full in", ...shown("time_to_exhaustion_seconds", undefined, fullIn) },
  { title: "Limit", ...shown("binding_limit", undefined, limit), isText: true },
];

let order = { column: 1, isDescending: true };
let rows = [];
let picked;
let onPick;

export function setUpEngines(pick) {
  onPick = pick;
  const head = byId("engines-head");
  COLUMNS.forEach((column, i) => {
    const button = element("button", { type: "button", class: "sort" }, column.title);
    button.addEventListener("click", () => sortBy(i));
    head.append(element("th", { scope: "col", class: i > 1 && !column.isText ? "n" : undefined }, button));
  });
  byId("filter").addEventListener("input", draw);
}

function sortBy(column) {
  const isSame = order.column === column;
  order = { column, isDescending: isSame ? !order.isDescending : !COLUMNS[column].isText };
  draw();
}

export function showEngines(engines, key) {
  rows = engines.length > 1 ? engines : [];
  picked = key;
  draw();
}

function sorted() {
  const { of } = COLUMNS[order.column];
  const towards = order.isDescending ? 1 : -1;
  if (!of) return [...rows].sort((a, b) => towards * byHeat(a, b));
  const comparable = (row) => { const v = of(row); return v === "+Inf" ? Infinity : v; };
  return [...rows].sort((a, b) => {
    const [x, y] = [comparable(a), comparable(b)];
    if (!isKnown(x) || !isKnown(y)) return isKnown(x) ? -1 : isKnown(y) ? 1 : 0; // the unknown last
    return towards * (x < y ? 1 : x > y ? -1 : 0) || byHeat(a, b);
  });
}

function draw() {
  const wanted = byId("filter").value.trim().toLowerCase();
  const matching = sorted().filter(({ engine, target }) => !wanted ||
    `${engine.model_name ?? ""} ${target.target} ${engine.engine ?? ""} ${engine.state}`.toLowerCase().includes(wanted));
  say(byId("engines-count"), matching.length === rows.length ? `${rows.length} engines`
    : `${matching.length} of ${rows.length} engines`);
  [...byId("engines-head").children].forEach((cell, i) => mark(cell, "aria-sort",
    i === order.column ? (order.isDescending ? "descending" : "ascending") : undefined));
  keep(byId("engine-rows"), matching, (row) => row.key, createRow, updateRow);
}

function createRow({ key }) {
  const view = { cells: COLUMNS.map((_, i) => element(i ? "td" : "th", i ? {} : { scope: "row" })) };
  view.pick = element("button", { type: "button", class: "pick" });
  [view.model, view.place] = [element("bdi"), element("span", { class: "unit" })];
  view.pick.append(view.model, view.place);
  view.pick.addEventListener("click", () => onPick(key));
  view.cells[0].append(view.pick);
  [view.icon, view.state] = [icon(), element("span")];
  view.cells[1].append(view.icon, view.state);
  view.buttons = COLUMNS.map(({ name, title, at, isText }, i) => {
    if (!name) return undefined;
    const button = metricButton(name, { label: title, at });
    view.cells[i].append(button);
    if (!isText) view.cells[i].className = "n";
    return button;
  });
  // A metric that is looked up is of the row that it stands in.
  view.cells.slice(2).forEach((cell) => cell.addEventListener("click", () => onPick(key), { capture: true }));
  view.node = element("tr", {}, ...view.cells);
  return view;
}

function updateRow(view, row) {
  const { engine, target } = row;
  say(view.model, engine.model_name ?? target.target);
  say(view.place, [engine.model_name && target.target, isKnown(engine.engine) && `engine ${engine.engine}`]
    .filter(Boolean).join(" · "));
  mark(view.pick, "title", engine.model_name);
  mark(view.pick, "aria-current", row.key === picked && "true");
  mark(view.node, "data-severity", engine.severity);
  setIcon(view.icon, engine.severity);
  view.row = row;
  COLUMNS.forEach((column, i) => {
    if (!view.buttons[i]) return;
    const known = column.of(row);
    showMetric(view.buttons[i], isKnown(known) ? column.show(known) : UNKNOWN);
  });
  const used = engine.values.kv_cache_usage_ratio;
  view.cells[2].style.setProperty("--share", isKnown(used) ? used : 0);
}

/** The states in words, with the age of what is old; recomputed every second. */
export function ageEngines(status, sinceReceived) {
  for (const { node, state, row } of byId("engine-rows").views?.values() ?? []) {
    const { engine, target } = row;
    const age = ageOf(status, target, sinceReceived);
    const isStale = isKnown(engine.engine) && age > status.stale_after_seconds;
    mark(node, "data-old", isStale && "");
    const words = isKnown(engine.engine) ? word(engine.state) : "no answer";
    say(state, isStale ? `${words}, ${duration(age)} old` : words);
  }
}

/** The health of each source of each target; those that fail first. */
export function showSourceTable(status, sinceReceived) {
  const now = status.generated_timestamp_seconds + sinceReceived;
  const all = status.targets.flatMap((target) => target.sources.map((source) => ({
    key: `${target.target} ${source.source}`, target, source,
    ...sourceWords(source, now, status.stale_after_seconds) })));
  const rank = { critical: 0, warning: 1, ok: 2, unknown: 3 };
  all.sort((a, b) => rank[a.severity] - rank[b.severity]);
  keep(byId("source-rows"), all, (row) => row.key, createSource, updateSource);
}

function createSource() {
  const cells = Array.from({ length: 5 }, (_, i) => element(i ? "td" : "th", i ? {} : { scope: "row" }));
  const view = { cells, icon: icon(), words: element("span"), name: element("bdi") };
  cells[0].append(view.name);
  cells[2].append(view.icon, view.words);
  view.node = element("tr", {}, ...cells);
  return view;
}

function updateSource(view, { target, source, severity, words }) {
  say(view.name, target.target);
  say(view.cells[1], source.source);
  setIcon(view.icon, severity);
  mark(view.node, "data-severity", severity);
  say(view.words, source.up === true ? `works, ${words}` : words);
  say(view.cells[3], count(source.failed_collections));
  view.cells[3].className = "n";
  say(view.cells[4], source.last_error ?? "");
}

/** Arguments that move memory, where each came from, and who says otherwise. */
export function showArguments(target) {
  byId("arguments").hidden = !target.arguments.length;
  keep(byId("argument-rows"), target.arguments, (one) => `${one.argument} ${one.source}`, () => {
    const cells = [element("th", { scope: "row" }), element("td"), element("td"), element("td")];
    return { node: element("tr", {}, ...cells), cells };
  }, ({ cells, node }, one) => {
    say(cells[0], one.argument);
    say(cells[1], sizeToo(one));
    say(cells[2], one.source);
    const others = Object.entries(one.denied_by ?? {}).map(([source, other]) => `${source} says ${other}`);
    say(cells[3], others.join(", "));
    mark(node, "data-severity", others.length > 0 && "warning");
  });
  const missing = target.missing_metrics;
  byId("missing").hidden = !missing.length;
  say(byId("missing"), missing.length ? `Not on vLLM’s page: ${missing.join(", ")}.` : "");
}

const sizeToo = ({ argument, value: text }) =>
  (argument.endsWith("_bytes") && Number(text) ? `${text} (${bytes(Number(text))})` : text);
