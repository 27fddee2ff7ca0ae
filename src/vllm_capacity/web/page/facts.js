// The key numbers of one engine, each a button that says what it means.

import { element } from "./dom.js";
import * as format from "./format.js";
import { innermost, metricButton, showMetric } from "./metric.js";

const { anyOf, count, isKnown, limit, number, percent, reading, signedPercent, UNKNOWN, word } = format;

const one = (name, show, extra = {}) => ({ name, show, ...extra });
const by = (name, at, show, after, before) => ({ name, at, show, after, before });

const ROWS = [
  ["Room for more", [
    by("headroom_requests", "observed_mean", count, "usual"),
    by("headroom_requests", "observed_p95", count, "large (p95)"),
    by("headroom_requests", "full_length", count, "full length")]],
  ["Running", [
    one("running_requests", count),
    one("max_sequences", count, { any: true, before: "of", after: "max_num_seqs" })]],
  ["Waiting", [
    by("waiting_requests", "capacity", count, "for room"),
    by("waiting_requests", "deferred", count, "deferred"),
    by("waiting_requests", "unknown", count, "requests")]],
  ["KV cache full in", [one("time_to_exhaustion_seconds", format.fullIn)]],
  ["Next request waits for", [one("binding_limit", limit)]],
  ["Saturation", [one("saturation_ratio", percent, { after: "of the tightest resource" })]],
  ["Usage error", [by("prediction_error_blocks", "kv_cache_used_blocks", format.signed(count), "blocks, held − predicted"),
    one("ledger_state", word)]],
  ["Capacity error", [by("prediction_error_ratio", "kv_cache_tokens", signedPercent, "reported − predicted")]],
  ["Request size", [
    by("request_footprint_tokens", "mean", count, "mean"),
    by("request_footprint_tokens", "p95", count, "p95 tokens")]],
  ["Requests a second", [
    by("arrived_requests_per_second", "1m", number, "arrive"),
    by("completed_requests_per_second", "1m", number, "complete")]],
  ["Prefix cache hits", [by("cached_prompt_tokens_ratio", "local", percent, "of prompt tokens, 5 min")]],
  ["Preempted", [by("preempted_requests_ratio", "5m", percent, "of requests, 5 min")]],
];

let views;

export function setUpFacts(list) {
  views = ROWS.map(([label, items]) => {
    const value = element("dd");
    const parts = items.map((item) => createItem(item, value, label));
    list.append(element("div", { class: "fact" }, element("dt", {}, label), value));
    return parts;
  });
}

function createItem(item, parent, label) {
  const what = [label, item.after].filter(Boolean).join(", ");
  const button = metricButton(item.name, { label: what, at: item.at });
  const unit = (words) => (words ? [element("span", { class: "unit" }, words)] : []);
  const node = element("span", { class: "item" }, ...unit(item.before), button, ...unit(item.after));
  parent.append(node);
  return { item, button, node };
}

export function showFacts(values) {
  for (const parts of views) {
    const found = parts.map((part) => valueOf(values, part.item));
    const isAnyKnown = found.some(({ value }) => isKnown(value));
    parts.forEach(({ item, button, node }, i) => {
      const { value, label } = found[i];
      // What is unknown beside something known is left out where it is only another kind of it.
      node.hidden = !isKnown(value) && (isAnyKnown ? isAlternative(item) : i > 0);
      showMetric(button, isKnown(value) ? item.show(value) : UNKNOWN, label ?? item.at);
    });
  }
}

const isAlternative = (item) => item.name === "waiting_requests" || item.any;

function valueOf(values, item) {
  if (item.any) return anyOf(values, item.name);
  return { value: innermost(reading(values, item.name, item.at)) };
}
