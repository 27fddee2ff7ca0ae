// The pool of KV cache blocks as a bar: used, committed beyond that, free; the prediction below it.

import { byId, mark, say, shape } from "./dom.js";
import { anyOf, bytes, count, isKnown, percent, reading, UNKNOWN } from "./format.js";
import { metricButton, showMetric } from "./metric.js";

const BROADEST = 2; // pools that the axis shows; what is committed beyond is said in words
const TOP = 8, HEIGHT = 34, BELOW = TOP + HEIGHT;

const parts = {};
const buttons = {};

export function setUpPool() {
  const svg = byId("pool-bar");
  const rect = (name, y = TOP, height = HEIGHT) =>
    (parts[name] = shape("rect", { class: name, y, height, x: 0, width: 0 }));
  const at = (name, ...inside) =>
    (parts[name] = shape("svg", { class: name, overflow: "visible", x: 0, y: 0 }, ...inside));
  const tick = (name, text, anchor) => at(name,
    shape("line", { y1: BELOW + 20, y2: BELOW + 25 }),
    shape("text", { y: BELOW + 37, "text-anchor": anchor }, text));
  svg.append(
    rect("track"), rect("beyond"), rect("committed"), rect("used"),
    at("full", shape("line", { y1: 2, y2: BELOW + 25 })),
    rect("interval", BELOW + 7, 6),
    at("predicted", shape("path", { d: `M0 ${BELOW + 3}l-6 12h12z` })),
    tick("tick-0", "0 %", "start"), tick("tick-50", "50 %", "middle"), tick("tick-100", "100 %", "end"),
    tick("tick-far", "", "end"),
  );
  for (const [slot, name, label, at_] of SLOTS) {
    buttons[slot] = metricButton(name, { label, at: at_ });
    byId(`pool-${slot}`).append(buttons[slot]);
  }
}

const SLOTS = [
  ["ratio", "kv_cache_usage_ratio", "Used share"],
  ["used", "kv_cache_used_blocks", "Blocks used"],
  ["blocks", "kv_cache_blocks", "Blocks in the pool"],
  ["used-tokens", "kv_cache_used_tokens", "Tokens used, whole blocks"],
  ["tokens", "kv_cache_capacity_tokens", "Capacity in tokens"],
  ["used-bytes", "kv_cache_used_bytes", "Bytes used"],
  ["bytes", "kv_cache_capacity_bytes", "Capacity in bytes"],
  ["committed", "kv_cache_committed_blocks", "Committed: blocks at the joint peak", "expected"],
  ["free", "kv_cache_free_blocks", "Blocks free"],
  ["predicted", "predicted_kv_cache_used_blocks", "Blocks that ought to be in use"],
  ["low", "predicted_kv_cache_used_blocks_bound", "Lower bound of the prediction", "low"],
  ["high", "predicted_kv_cache_used_blocks_bound", "Upper bound of the prediction", "high"],
];

/** Every share of the pool that is drawn; undefined where it is not known. */
function poolShares(values) {
  const total = values.kv_cache_blocks;
  const share = (blocks) => (isKnown(blocks) && total ? blocks / total : undefined);
  const bound = (which) => share(reading(values, "predicted_kv_cache_used_blocks_bound", which));
  return {
    used: values.kv_cache_usage_ratio ?? share(values.kv_cache_used_blocks),
    committed: share(reading(values, "kv_cache_committed_blocks", "expected")),
    predicted: share(values.predicted_kv_cache_used_blocks),
    low: bound("low"), high: bound("high"),
  };
}

export function showPool(values, reasons) {
  const shares = poolShares(values);
  draw(shares);
  numbers(values);
  say(byId("pool-committed-share"), isKnown(shares.committed) ? percent(shares.committed) : "");
  say(byId("pool-predicted-share"), isKnown(shares.predicted) ? percent(shares.predicted) : "");
  byId("pool-interval").hidden = !isKnown(shares.low);
  const isUnpredicted = !isKnown(shares.predicted);
  const why = isUnpredicted && (reasons.occupancy ?? reasons.ledger);
  say(byId("pool-why"), why ? `since ${why}` : "");
  say(byId("pool-title"), inWords(shares));
}

function draw({ used, committed, predicted, low, high }) {
  const scale = Math.min(BROADEST, Math.max(1, (committed ?? 0) * 1.04));
  const x = (share) => `${(100 * Math.min(Math.max(share, 0), scale)) / scale}%`;
  const span = (name, from, to) => {
    const isShown = isKnown(from) && isKnown(to) && to > from;
    mark(parts[name], "visibility", isShown ? undefined : "hidden");
    if (!isShown) return;
    mark(parts[name], "x", x(from));
    mark(parts[name], "width", `${(100 * (Math.min(to, scale) - Math.min(from, scale))) / scale}%`);
  };
  span("track", 0, 1);
  span("beyond", 1, scale > 1 ? scale : undefined);
  span("used", 0, used);
  span("committed", used, committed);
  span("interval", low, isKnown(high) ? Math.max(high, low + 0.002) : undefined);
  const put = (name, share) => {
    mark(parts[name], "visibility", isKnown(share) ? undefined : "hidden");
    if (isKnown(share)) mark(parts[name], "x", x(share));
  };
  put("predicted", predicted);
  put("full", scale > 1 ? 1 : undefined);
  put("tick-0", 0);
  put("tick-50", 0.5);
  put("tick-100", 1);
  put("tick-far", committed > BROADEST ? BROADEST : undefined);
  say(parts["tick-far"].lastChild, `${percent(committed)} →`);
  mark(parts["tick-100"].lastChild, "text-anchor", scale > 1 ? "middle" : "end");
}

function numbers(values) {
  const capacity = anyOf(values, "kv_cache_capacity_tokens");
  const size = anyOf(values, "kv_cache_capacity_bytes");
  const shown = {
    ratio: percent(values.kv_cache_usage_ratio),
    used: count(values.kv_cache_used_blocks), blocks: count(values.kv_cache_blocks),
    "used-tokens": count(values.kv_cache_used_tokens), tokens: count(capacity.value),
    "used-bytes": bytes(values.kv_cache_used_bytes), bytes: bytes(size.value),
    committed: count(reading(values, "kv_cache_committed_blocks", "expected")),
    free: count(values.kv_cache_free_blocks),
    predicted: count(values.predicted_kv_cache_used_blocks),
    low: count(reading(values, "predicted_kv_cache_used_blocks_bound", "low")),
    high: count(reading(values, "predicted_kv_cache_used_blocks_bound", "high")),
  };
  for (const [slot, text] of Object.entries(shown)) showMetric(buttons[slot], text);
  showMetric(buttons.tokens, shown.tokens, capacity.label);
  showMetric(buttons.bytes, shown.bytes, size.label);
  byId("pool-in-bytes").hidden = !isKnown(size.value);
  byId("pool-in-tokens").hidden = !isKnown(capacity.value);
}

function inWords({ used, committed, predicted, low, high }) {
  const interval = isKnown(low) ? `, between ${percent(low)} and ${percent(high)}` : "";
  return `KV cache: ${percent(used)} used, ${percent(committed)} committed, ` +
    `${isKnown(predicted) ? percent(predicted) : UNKNOWN} predicted${interval}.`;
}
